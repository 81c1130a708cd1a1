// Package bench is for measurements that are too long for a package's own
// benchmarks or need other libraries to compare with, which the library itself
// must not depend on.
package bench
