package store

// Abandon is what follows an upload that failed.
var Abandon = (*Store).abandon
