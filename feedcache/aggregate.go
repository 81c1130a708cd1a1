package feedcache

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Group is what several people did to one thing: a line of a notification
// feed.
type Group[K comparable] struct {
	Key    K       // what was done to what
	IDs    []int64 // of the notifications, newest first
	Actors []int64 // who did it, each once, the latest first
}

// Aggregate gathers notifications of the same key: all likes of one photo, say.
// Of each, describe returns its ID, key and actor. The groups are in the order
// of their newest ID, whatever the order of the notifications. It is a pure
// function: what is on another page is in no group.
func Aggregate[T any, K comparable](notifications []T, describe func(T) (id int64, key K, actor int64)) []Group[K] {
	type note struct {
		id, actor int64
		key       K
	}
	notes := make([]note, len(notifications))
	for i, n := range notifications {
		notes[i].id, notes[i].key, notes[i].actor = describe(n)
	}
	slices.SortStableFunc(notes, func(a, b note) int { return cmp.Compare(b.id, a.id) })
	var groups []Group[K]
	at := make(map[K]int)
	for _, n := range notes {
		i, ok := at[n.key]
		if !ok {
			i = len(groups)
			at[n.key], groups = i, append(groups, Group[K]{Key: n.key})
		}
		g := &groups[i]
		if len(g.IDs) > 0 && g.IDs[len(g.IDs)-1] == n.id {
			continue // the same notification twice
		}
		g.IDs = append(g.IDs, n.id)
		if !slices.Contains(g.Actors, n.actor) {
			g.Actors = append(g.Actors, n.actor)
		}
	}
	return groups
}

// Phrase names the first of total people: "ada", "ada and bob", "ada, bob and 3
// others". Names beyond total are left out; without names it is "5 people".
func Phrase(names []string, total int) string {
	names = names[:max(0, min(len(names), total))]
	switch others := total - len(names); {
	case total <= 0:
		return ""
	case len(names) == 0 && total == 1:
		return "1 person"
	case len(names) == 0:
		return fmt.Sprintf("%d people", total)
	case others == 1:
		return strings.Join(names, ", ") + " and 1 other"
	case others > 1:
		return fmt.Sprintf("%s and %d others", strings.Join(names, ", "), others)
	case len(names) == 1:
		return names[0]
	default:
		last := len(names) - 1
		return strings.Join(names[:last], ", ") + " and " + names[last]
	}
}
