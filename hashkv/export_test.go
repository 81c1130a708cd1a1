package hashkv

// For tests of the layout, which the package's users never see.
var (
	Split  = split
	Join   = join
	Hash   = hash
	Unpack = unpack
)

const (
	MinLevel = minLevel
	MaxLevel = maxLevel
	SlotBits = slotBits
)

func Pack(x uint64) string { return string(appendPacked(nil, x)) }

func Squeeze(live, x uint64) uint64 { return newMask(live).squeeze(x) }

func Stretch(live, y uint64) uint64 { return newMask(live).stretch(y) }

func Width(live uint64) int { return newMask(live).width() }

func Tag(slot int) string {
	tag := tags()[slot]
	return string(tag[:])
}

func BucketName(prefix string, level int, bucket uint64, tagged int) string {
	return string(spot{level, bucket}.appendName(nil, prefix, tagged))
}
