package localserver

// NewestFirst is newestFirst.
var NewestFirst = newestFirst

// SetFreePort replaces how the host finds ports. Call it before any start.
func SetFreePort(h *Host, f func() (int, error)) { h.freePort = f }

// FreePort is freePort.
var FreePort = freePort
