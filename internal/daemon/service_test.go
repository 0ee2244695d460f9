package daemon

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What systemd is told: ready when the socket answers, alive while it is, and
// that it ends.
func TestSystemdIsToldOfReadinessLifeAndEnd(t *testing.T) {
	home := newHome(t)
	path := filepath.Join(home.State, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skipf("no datagrams over unix sockets here: %v", err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "200000")
	told := make(chan string, 1024)
	go func() { // ends with the socket
		b := make([]byte, 1024)
		for {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Up(ctx, home, UpRequest{}, func(Event) {}) }()
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := await(t, told, want); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		if _, err := Dial(ctx, home); err != nil {
			t.Errorf("after %s nobody answers: %v", want, err)
		}
	}
	stop()
	for await(t, told, "STOPPING=1") != "STOPPING=1" {
	}
	await(t, ended, "the end")
}

func TestAHomeMovesWholeAndReplacesNothing(t *testing.T) {
	from, to := newHome(t), newHome(t)
	from.Config = filepath.Join(from.State, "etc", "fwd.toml")
	to.Config = filepath.Join(to.State, "etc", "fwd.toml")
	os.Mkdir(filepath.Dir(from.Config), 0o700)
	for _, name := range []string{"identity.key", "roster", "daemon", "fwd.log", "etc/fwd.toml"} {
		write(t, from.file(name), "%s", name)
	}
	moved, err := moveHome(t.Context(), from, to, "nobody-has-this-name")
	if err != nil || len(moved) != 2 {
		t.Fatalf("moved %q, %v", moved, err)
	}
	for name, want := range map[string]string{"identity.key": "to", "roster": "to", "daemon": "to", "fwd.log": "from", "etc/fwd.toml": "from to"} {
		for where, home := range map[string]Home{"from": from, "to": to} {
			_, err := os.Stat(home.file(name))
			if is := err == nil; is != strings.Contains(want, where) {
				t.Errorf("%s in %s: %v, it should be in %s", name, where, is, want)
			}
		}
	}
	if info, _ := os.Stat(to.file("identity.key")); info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the key is open to others: %v", info.Mode())
	}

	// A second home does not replace it, nor does the same again.
	other := newHome(t)
	write(t, other.file("identity.key"), "another")
	write(t, other.Config, "another")
	for _, home := range []Home{other, from} {
		if moved, err := moveHome(t.Context(), home, to, ""); err != nil || len(moved) != 0 {
			t.Errorf("moved %q, %v", moved, err)
		}
	}
	if key, _ := os.ReadFile(to.file("identity.key")); string(key) != "identity.key" {
		t.Errorf("the machine's key was replaced by %q", key)
	}
}

// Half a move is none: the old home stays the whole one, and the next try moves it.
func TestAMoveThatFailedHalfWayCanBeRepeated(t *testing.T) {
	from, to := newHome(t), newHome(t)
	names := []string{"daemon", "identity.key", "known", "network.key", "roster"}
	for _, name := range names {
		write(t, from.file(name), "%s", name)
	}
	write(t, to.file("daemon"), "left by a move that was interrupted")
	if err := os.MkdirAll(to.file("roster/in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if moved, err := moveHome(t.Context(), from, to, ""); err == nil || len(moved) != 0 {
		t.Fatalf("moved %q, %v", moved, err)
	}
	for _, name := range names {
		if got, err := os.ReadFile(from.file(name)); string(got) != name {
			t.Errorf("%s in the old home is %q, %v", name, got, err)
		}
		if _, err := os.ReadFile(to.file(name)); err == nil {
			t.Errorf("%s is in the new home already", name)
		}
	}
	if err := os.RemoveAll(to.file("roster")); err != nil {
		t.Fatal(err)
	}
	if _, err := moveHome(t.Context(), from, to, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if got, err := os.ReadFile(to.file(name)); string(got) != name {
			t.Errorf("%s in the new home is %q, %v", name, got, err)
		}
		if _, err := os.Stat(from.file(name)); err == nil {
			t.Errorf("%s is in the old home still", name)
		}
	}
}

func TestAHomeInUseIsNotMoved(t *testing.T) {
	m := newMachine(t)
	_, err := moveHome(t.Context(), m.home, newHome(t), "")
	if f := failureOf(err); f.Code != "already-running" || !m.home.HasIdentity() {
		t.Errorf("got %v", err)
	}
}

// Whoever types expose --keep, Ctrl-C and service install in a row need not wait a minute.
func TestAHomeWhoseDaemonOnlyLingersIsMoved(t *testing.T) {
	m := &machine{t, newHome(t)}
	ready := make(chan struct{})
	m.run(func(ctx context.Context) error {
		return run(ctx, m.home, options{linger: time.Hour, ready: func() { close(ready) }})
	})
	await(t, ready, "the daemon's socket")
	to := newHome(t)
	if _, err := moveHome(t.Context(), m.home, to, ""); err != nil || !to.HasIdentity() || m.home.HasIdentity() {
		t.Errorf("not moved: %v", err)
	}
}

func TestLowPortsAreSeen(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                   false,
		"[relay]\nlisten = ['4001']":         false,
		"[relay]\nlisten = ['4001', '443']":  true,
		"[relay]":                            false,
		"[[connect]]\nservice='a'\nlocal=80": true,
		"[[connect]]\nservice='a'\nlocal='unix:/x'\n[[connect]]\nservice='a'\nlocal=0": false,
		"[[expose]]\ntarget=22": false,
	} {
		home := newHome(t)
		write(t, home.Config, "%s", text)
		if got, err := WantsLowPort(home, ""); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// The low port of a home that becomes the machine's is seen before it moves, after, and
// when the service is installed anew by who has none.
func TestLowPortsOfTheMachinesHomeAreSeen(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"in fwd.toml": {"fwd.toml": "[relay]\nlisten = ['443']"},
		"kept":        {"daemon": `{"kept": {"relay": {"listen": ["443"]}}}`},
	} {
		ann, root, to := newHome(t), newHome(t), newHome(t)
		write(t, ann.file("identity.key"), "ann's")
		for file, text := range files {
			write(t, ann.file(file), "%s", text)
		}
		if low, err := WantsLowPort(becoming(ann, to), ""); err != nil || !low {
			t.Errorf("%s: before it moves: %v, %v", name, low, err)
		}
		if _, err := moveHome(t.Context(), ann, to, ""); err != nil {
			t.Fatal(err)
		}
		for whose, from := range map[string]Home{"ann": ann, "root": root} {
			if low, err := WantsLowPort(becoming(from, to), ""); err != nil || !low {
				t.Errorf("%s: installed again by %s: %v, %v", name, whose, low, err)
			}
		}
	}
}
