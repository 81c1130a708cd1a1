package shard

// A ReadPolicy says where to read.
type ReadPolicy struct{}
