package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
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
)

// stays are the files of a home that are not moved: they belong to a process.
var stays = []string{"fwd.sock", "fwd.lock", "fwd.log"}

// MoveToSystem makes the home from the machine's: its state moves, its fwd.toml
// is copied. What the machine's service has already is never replaced. moved
// tells what was done, an error or not.
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
		// The key last: until it is there the old home is the whole one.
		slices.SortFunc(entries, func(a, b fs.DirEntry) int {
			return btoi(a.Name() == "identity.key") - btoi(b.Name() == "identity.key")
		})
		for _, e := range entries {
			if !e.Type().IsRegular() || slices.Contains(stays, e.Name()) || from.file(e.Name()) == from.Config {
				continue
			}
			if err := moveFile(from.file(e.Name()), to.file(e.Name()), owner, 0o600, true); err != nil {
				return moved, err
			}
		}
		moved = append(moved, fmt.Sprintf("moved this machine's identity and network from %s to %s", from.State, to.State))
	}
	if is.Config != to.Config {
		if err := os.MkdirAll(filepath.Dir(to.Config), 0o755); err != nil {
			return moved, fmt.Errorf("make the machine's configuration folder: %w", err)
		}
		if err := moveFile(from.Config, to.Config, owner, 0o640, false); err != nil {
			return moved, err
		}
		moved = append(moved, fmt.Sprintf("copied %s to %s, which is read from now on", from.Config, to.Config))
	}
	return moved, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// moveFile also works from one file system to another.
func moveFile(from, to, owner string, mode os.FileMode, remove bool) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("move %s: %w", from, err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return fmt.Errorf("move %s: %w", from, err)
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = giveTo(out, owner)
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		os.Remove(to)
		return fmt.Errorf("move %s: %w", from, err)
	}
	if remove {
		return os.Remove(from)
	}
	return nil
}

// giveTo makes owner's user the file's, if there is one; where systemd makes
// the user it also hands over the folder.
func giveTo(f *os.File, owner string) error {
	u, err := user.Lookup(owner)
	if err != nil {
		return nil
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return nil // no numbers: no Unix
	}
	return f.Chown(uid, gid)
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
