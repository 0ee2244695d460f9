package daemon

import (
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/adrg/xdg"
)

// A Home is where one fwd keeps its things: FWD_HOME if that is set, else the
// places that the system has for configuration and state. One home, one
// identity, one network, one daemon.
type Home struct {
	State  string // keys, roster, known, socket, lock, log; 0700
	Config string // fwd.toml
}

// FindHome reads FWD_HOME and the system's conventions.
func FindHome() Home {
	if dir := os.Getenv("FWD_HOME"); dir != "" {
		return Home{State: dir, Config: filepath.Join(dir, "fwd.toml")}
	}
	return Home{
		State:  filepath.Join(xdg.StateHome, "fwd"),
		Config: filepath.Join(xdg.ConfigHome, "fwd", "fwd.toml"),
	}
}

func (h Home) file(name string) string { return filepath.Join(h.State, name) }

// Socket is the control API's address. A unix socket's path may have about
// 100 bytes; a longer home is served by one in the temporary folder, named
// after it (socketPath).
func (h Home) Socket() string { return socketPath(h.file("fwd.sock")) }

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
