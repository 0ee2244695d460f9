package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/gofrs/flock"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/forward"
	"fwd/identity"
)

// stays are the files of a home that are not moved: they belong to a process.
var stays = []string{"fwd.sock", "fwd.lock", "fwd.log"}

// MoveToSystem makes the home from the machine's: its state moves, its fwd.toml
// is copied. An identity or configuration that the machine's service has already is
// never replaced. moved tells what was done, an error or not.
func MoveToSystem(ctx context.Context, from Home) (moved []string, err error) {
	return moveHome(ctx, from, SystemHome(), "fwd")
}

// Becoming is the machine's home as MoveToSystem will make it of from, with its state
// and its fwd.toml where they are before.
func Becoming(from Home) Home { return becoming(from, SystemHome()) }

func becoming(from, to Home) Home {
	is := to
	if from.HasIdentity() && !to.HasIdentity() {
		is.State = from.State
	}
	_, fromErr := os.Stat(from.Config)
	if _, err := os.Stat(to.Config); fromErr == nil && errors.Is(err, fs.ErrNotExist) {
		is.Config = from.Config
	}
	return is
}

func moveHome(ctx context.Context, from, to Home, owner string) (moved []string, err error) {
	is := becoming(from, to)
	if err := os.MkdirAll(to.State, 0o700); err != nil {
		return nil, fmt.Errorf("make the machine's state folder: %w", err)
	}
	if is.State != to.State {
		// One that only lingers, a minute after the last command, is not in use.
		if err := yieldToForeground(ctx, from); err != nil {
			return nil, err
		}
		lock := flock.New(from.file("fwd.lock"))
		// Its lock goes a moment after its socket.
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if ok, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("lock %s: %w", from.State, err)
		} else if !ok {
			return nil, fail(ExitFailed, "already-running", "as its user: fwd stop", "fwd runs in %s, which is to be moved", from.State)
		}
		defer lock.Unlock()
		entries, err := os.ReadDir(from.State)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", from.State, err)
		}
		var names []string
		for _, e := range entries {
			if e.Type().IsRegular() && !slices.Contains(stays, e.Name()) && from.file(e.Name()) != from.Config {
				names = append(names, e.Name())
			}
		}
		err = moveState(from, to, names, owner)
		if to.HasIdentity() {
			moved = append(moved, fmt.Sprintf("moved this machine's identity and network from %s to %s", from.State, to.State))
		}
		if err != nil {
			return moved, err
		}
	}
	if is.Config != to.Config {
		if err := os.MkdirAll(filepath.Dir(to.Config), 0o755); err != nil {
			return moved, fmt.Errorf("make the machine's configuration folder: %w", err)
		}
		if err := copyFile(from.Config, to.Config, owner, 0o640); err != nil {
			return moved, err
		}
		moved = append(moved, fmt.Sprintf("copied %s to %s, which is read from now on", from.Config, to.Config))
	}
	return moved, nil
}

// moveState moves the files of these names, the key among them. One home is the whole one
// at any time: the old one until its key is gone, which goes when all is copied, then the
// new one. What an interrupted move has left in the new one is replaced.
func moveState(from, to Home, names []string, owner string) error {
	const key = "identity.key"
	names = append(slices.DeleteFunc(names, func(name string) bool { return name == key }), key)
	for i, name := range names {
		if err := copyFile(from.file(name), to.file(name), owner, 0o600); err != nil {
			return errors.Join(err, to.remove(names[:i]))
		}
	}
	if err := os.Remove(from.file(key)); err != nil {
		return errors.Join(err, to.remove(names))
	}
	return from.remove(names[:len(names)-1])
}

func (h Home) remove(names []string) (err error) {
	for _, name := range names {
		err = errors.Join(err, os.Remove(h.file(name)))
	}
	return err
}

// copyFile gives the copy to owner.
func copyFile(from, to, owner string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err == nil {
		err = identity.WriteFile(to, data, mode)
	}
	if err == nil {
		err = giveTo(to, owner)
	}
	if err != nil {
		os.Remove(to) // half a copy is none
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return nil
}

// giveTo makes owner's user the file's, if there is one; where systemd makes
// the user it also hands over the folder.
func giveTo(path, owner string) error {
	u, err := user.Lookup(owner)
	if err != nil {
		return nil
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return nil // no numbers: no Unix
	}
	return os.Lchown(path, uid, gid)
}

// WantsLowPort: would `fwd up` here listen below port 1024? path "": the
// home's own file.
func WantsLowPort(home Home, path string) (bool, error) {
	u := &up{path: path, must: path != ""}
	if path == "" {
		u.path = home.Config
	}
	c, _, err := u.read()
	if err != nil {
		return false, err
	}
	var k kept
	if s, err := openState(home.file("daemon")); err == nil {
		k = s.Kept
	}
	for _, w := range k.wishes() {
		if w.connect != nil {
			c.Connect = append(c.Connect, connectConfig{Local: localWord{w.connect.Local}})
		}
	}
	for _, f := range c.Connect {
		if l, err := forward.ParseLocal(f.Local.text); err == nil && l.Network() == "tcp" && l.Port() > 0 && l.Port() < 1024 {
			return true, nil
		}
	}
	var listen []string
	if c.Relay != nil {
		listen = c.Relay.request(nameWord{}).Listen
	} else if k.Relay != nil {
		listen = k.Relay.Listen
	}
	for _, w := range listen {
		addrs, err := listenAddrs(w)
		if err != nil {
			return false, err
		}
		for _, a := range addrs {
			if _, address, err := manet.DialArgs(withoutQUIC(a)); err == nil {
				_, port, _ := net.SplitHostPort(address)
				if n, err := strconv.Atoi(port); err == nil && n > 0 && n < 1024 {
					return true, nil
				}
			}
		}
	}
	return false, nil
}
