package pgbounce

// ParseINI reads a File from memory, and none of the files it names.
func ParseINI(path string, read func(string) ([]byte, error)) (File, error) {
	return parseINI(path, read)
}

// A DocKey is a key as the page on migration shows it.
type DocKey struct {
	Section, Name, Default, Why, Note string
	Fixed                             bool
}

// DocKeys are the keys of all sections.
func DocKeys() []DocKey {
	var all []DocKey
	for _, k := range iniKeys {
		section := "pgbouncer"
		if k.own {
			section = "pgbounce"
		}
		all = append(all, DocKey{section, k.name, k.def, k.why, k.note, k.fixed})
	}
	all = append(all, docParameters("databases", databaseKeys)...)
	all = append(all, docParameters("users", userKeys)...)
	return append(all, docParameters("peers", peerKeys)...)
}

func docParameters[T any](section string, keys []parameter[T]) []DocKey {
	var all []DocKey
	for _, k := range keys {
		all = append(all, DocKey{Section: section, Name: k.name, Default: k.def, Why: k.why, Note: k.note})
	}
	return all
}
