package daemon

import (
	"cmp"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/adrg/xdg"
)

// A Home is where one fwd keeps its things: FWD_HOME if that is set, else the
// places that the system has for configuration and state. One home, one
// identity, one network, one daemon; further networks have homes below it (In).
type Home struct {
	State  string // keys, roster, known, socket, lock, log; 0700
	Config string // fwd.toml
	// Network is what -n calls a network beside the first one; empty: the first.
	Network string
	System  bool // the machine's, not a user's: its service alone runs the daemon
}

// SystemHome is the machine's own, which the system service has: its user is
// fwd, and the group fwd may use its socket.
func SystemHome() Home { return systemHome }

// Variables for tests alone. The socket is in a folder of its own, since the state is
// closed to others.
var (
	systemHome   = Home{State: "/var/lib/fwd", Config: "/etc/fwd/fwd.toml", System: true}
	systemSocket = "/run/fwd/fwd.sock"
)

// FindHome reads FWD_HOME and the system's conventions. A user without an
// identity on a machine that has the system service's state uses that, also while
// the service does not run: an identity made then would be this user's for good.
func FindHome() Home {
	if dir := HomeFolder(); dir != "" {
		config := wholePath(os.Getenv("FWD_CONFIG")) // set by a user's unit
		return Home{State: dir, Config: cmp.Or(config, filepath.Join(dir, "fwd.toml"))}
	}
	if os.Getenv("FWD_SYSTEM") != "" { // set by the unit
		return SystemHome()
	}
	home := UserHome()
	if !home.HasIdentity() && runtime.GOOS == "linux" {
		// Lstat: it may be a link to where root alone may look.
		if _, err := os.Lstat(SystemHome().State); err == nil {
			return SystemHome()
		}
	}
	return home
}

// HomeFolder is FWD_HOME, absolute: what else is started with it, the daemon first of
// all, may run in another folder. Empty: it is not set.
func HomeFolder() string { return wholePath(os.Getenv("FWD_HOME")) }

func wholePath(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil { // else nobody knows where this runs
		return abs
	}
	return path
}

// UserHome is this user's own.
func UserHome() Home {
	return Home{
		State:  filepath.Join(xdg.StateHome, "fwd"),
		Config: filepath.Join(xdg.ConfigHome, "fwd", "fwd.toml"),
	}
}

// HasIdentity: something has run here before.
func (h Home) HasIdentity() bool {
	_, err := os.Stat(h.file("identity.key"))
	return err == nil
}

func (h Home) file(name string) string { return filepath.Join(h.State, name) }

// Socket is the control API's address. A unix socket's path may have about
// 100 bytes; a longer home is served by one in the temporary folder, named
// after it (socketPath).
func (h Home) Socket() string {
	if h.System {
		return systemSocket
	}
	return socketPath(h.file("fwd.sock"))
}

// Log is what the background daemon writes.
func (h Home) Log() string { return h.file("fwd.log") }

// Version is this binary's, from its build information.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}

// version is the release that this tree becomes; -ldflags -X may set it.
var version = "0.1.0"
