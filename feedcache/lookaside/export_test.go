package lookaside

// ItemKey returns the memcached key of k.
func (c *Cache[K, V]) ItemKey(k K) string { return c.cfg.itemKey(k) }

// MaxItem is the size of the largest key and value that are stored.
const MaxItem = maxItem
