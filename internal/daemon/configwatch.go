package daemon

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long the file must have been left alone before it is read:
// editors write it in several steps.
const settle = 200 * time.Millisecond

// watch reads fwd.toml again when it changes, until ctx ends. It watches the
// folder, since editors put a new file in the old one's place.
func (u *up) watch(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		err = watcher.Add(filepath.Dir(u.path))
	}
	if err != nil {
		// No folder, no descriptors left, a system without: fwd reload does it.
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
			// ..data is what a mounted Kubernetes configuration moves.
			if name := filepath.Base(e.Name); name == filepath.Base(u.path) || strings.HasPrefix(name, "..") {
				quiet.Reset(settle)
			}
		case err := <-watcher.Errors:
			u.d.log.Debug("watch fwd.toml", "err", err)
		case <-quiet.C:
			if u.unchanged() {
				continue
			}
			if _, err := u.reload(); err != nil {
				u.d.log.Error("fwd.toml was changed and is not used", "err", err)
			}
		}
	}
}
