package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long the file must have been left alone before it is read:
// editors write it in several steps.
const settle = 200 * time.Millisecond

// watch reads fwd.toml again when it changes, until ctx ends. It watches the
// folder, since editors put a new file in the old one's place; where that is not
// there yet, the nearest folder above it, until it is.
func (u *up) watch(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	watched := ""
	if err == nil {
		defer watcher.Close()
		watched, err = u.watchNearest(watcher, "")
	}
	if err != nil {
		// No descriptors left, a system without: fwd reload does it.
		u.d.log.Debug("fwd.toml is not watched", "err", err)
		<-ctx.Done()
		return ctx.Err()
	}
	quiet := time.NewTimer(settle) // once at the start: it may have changed since it was read
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-watcher.Events:
			if !ok {
				return ctx.Err()
			}
			gone := e.Name == watched && e.Op.Has(fsnotify.Remove|fsnotify.Rename)
			if gone {
				watcher.Remove(watched) // where it was only moved
				watched = ""
			}
			if gone || watched != filepath.Dir(u.path) {
				if watched, err = u.watchNearest(watcher, watched); err != nil {
					u.d.log.Debug("watch fwd.toml", "err", err)
				}
				quiet.Reset(settle)
			}
			// ..data is what a mounted Kubernetes configuration moves.
			if name := filepath.Base(e.Name); name == filepath.Base(u.path) || strings.HasPrefix(name, "..") {
				quiet.Reset(settle)
			}
		case err := <-watcher.Errors:
			u.d.log.Debug("watch fwd.toml", "err", err)
		case <-quiet.C:
			if err := u.notice(); err != nil {
				u.d.log.Error("fwd.toml was changed and is not used", "err", err)
			}
		}
	}
}

// watchNearest moves the watch to the file's folder, or the nearest above it that is
// there, and returns which. It looks again after each step: what is made before
// the watch stands is not told of.
func (u *up) watchNearest(watcher *fsnotify.Watcher, watched string) (string, error) {
	for {
		dir := filepath.Dir(u.path)
		for up := filepath.Dir(dir); up != dir; dir, up = up, filepath.Dir(up) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				break
			}
		}
		if dir == watched {
			return watched, nil
		}
		if watched != "" {
			watcher.Remove(watched)
		}
		watched = ""
		err := watcher.Add(dir)
		switch {
		case err == nil:
			watched = dir
		case !errors.Is(err, fs.ErrNotExist): // else it went since it was looked at
			return "", err
		}
	}
}
