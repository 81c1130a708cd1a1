package hashkv

// For tests of the layout, which the package's users never see.
var (
	Split  = split
	Join   = join
	Hash   = hash
	Unpack = unpack
)

func Pack(x uint64) string { return string(appendPacked(nil, x)) }
