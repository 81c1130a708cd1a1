package hashkv

// The tests of the stored layout need its parts.
var (
	Split  = split
	Pack   = pack
	Unpack = unpack
)
