package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/shardgram/shardgram/internal/localserver"
)

// dataVersion is that of the data folder's layout.
const dataVersion = 1

// A folder holds the data of one photoshare:
//
//	version      of this layout
//	photos/      the image files
//	servers/     the databases
//	servers-at   instead of servers/, the path of a folder elsewhere
//	seeding      is there while people and photos are put in
type folder struct {
	dir     string
	servers string // where the databases are
}

// openFolder opens a data folder. It makes one that does not exist, and refuses
// one that is not ours to use.
func openFolder(dir string) (*folder, error) {
	f := &folder{dir: dir, servers: filepath.Join(dir, "servers")}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the data folder, choose another one with --data: %w", err)
	}
	text, err := os.ReadFile(f.path("version"))
	if errors.Is(err, fs.ErrNotExist) {
		return f, f.fill()
	}
	if err != nil {
		return nil, err
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("%s does not hold a version: is %s a folder of photoshare?", f.path("version"), dir)
	}
	if version > dataVersion {
		return nil, fmt.Errorf("the data folder %s was made by a newer photoshare (version %d, this one knows %d): use that one, or another folder with --data", dir, version, dataVersion)
	}
	return f, f.findServers()
}

// fill makes an empty folder ours.
func (f *folder) fill() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	// A start that was cut off here may have left these.
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool {
		return e.Name() == "servers-at" || e.Name() == "version.new"
	})
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not a folder of photoshare: choose another one with --data", f.dir)
	}
	if localserver.Reachable(f.servers) != nil {
		// We are root, and the users as whom the servers run cannot get here,
		// as below /root: so the databases go where they can.
		const elsewhere = "/var/lib/photoshare"
		if err := os.MkdirAll(elsewhere, 0o711); err != nil {
			return err
		}
		if f.servers, err = os.MkdirTemp(elsewhere, ""); err != nil {
			return err
		}
		if err := os.Chmod(f.servers, 0o711); err != nil {
			return err
		}
		if err := os.WriteFile(f.path("servers-at"), []byte(f.servers+"\n"), 0o644); err != nil {
			return err
		}
	}
	// The version comes last, and at once: with it the folder is ours.
	if err := os.WriteFile(f.path("version.new"), []byte(strconv.Itoa(dataVersion)+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(f.path("version.new"), f.path("version"))
}

// findServers sets f.servers. The databases that belong to the photos must be
// there: new ones would show an empty site.
func (f *folder) findServers() error {
	text, err := os.ReadFile(f.path("servers-at"))
	if errors.Is(err, fs.ErrNotExist) {
		return localserver.Reachable(f.servers)
	}
	if err != nil {
		return err
	}
	f.servers = strings.TrimSpace(string(text))
	if _, err := os.Stat(f.servers); err != nil {
		return fmt.Errorf("the databases of %s are gone: %w", f.dir, err)
	}
	return nil
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f *folder) photos() string { return f.path("photos") }

// holds tells whether a path is in the folder.
func (f *folder) holds(path string) bool { return filepath.Dir(path) == f.dir }

// seeding tells whether a seeding was begun and not finished.
func (f *folder) seeding() bool {
	_, err := os.Stat(f.path("seeding"))
	return err == nil
}

func (f *folder) beginSeeding() error { return os.WriteFile(f.path("seeding"), nil, 0o644) }

func (f *folder) endSeeding() error { return os.Remove(f.path("seeding")) }
