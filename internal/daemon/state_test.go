package daemon

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestStateOutlivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	s, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	err = s.change(func(f *stateFile) {
		f.Port = 20001
		f.Denied["nas"] = append(f.Denied["nas"], "phone")
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err = openState(path)
	if err != nil {
		t.Fatal(err)
	}
	s.get(func(f stateFile) {
		if f.Port != 20001 || len(f.Denied["nas"]) != 1 {
			t.Errorf("got %+v", f)
		}
	})
}

func TestAListWrittenForOneKindOfAServiceIsForBoth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	if err := os.WriteFile(path, []byte(`{"denied":{"dns":["phone"],"dns/udp":["laptop","phone"],"dns/tcp":["tv"]},"allowed":{"web/tcp":["tv"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(s.Denied["dns"])
	if len(s.Denied) != 1 || !slices.Equal(s.Denied["dns"], []string{"laptop", "phone", "tv"}) || len(s.Allowed) != 1 || !slices.Equal(s.Allowed["web"], []string{"tv"}) {
		t.Errorf("denied %v, allowed %v", s.Denied, s.Allowed)
	}
}

func TestADamagedStateIsNamedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	if err := os.WriteFile(path, []byte(`{"denied":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(path); failureOf(err).Exit != ExitUsage {
		t.Errorf("got %v, want a usage failure: a deny that cannot be read is no allow", err)
	}
	if data, _ := os.ReadFile(path); string(data) != `{"denied":` {
		t.Errorf("the file was changed to %q", data)
	}
}

func TestWhatChangesNothingIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	port := func(n int) func(*stateFile) { return func(f *stateFile) { f.Port = n } }
	s, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.change(port(20001)); err != nil {
		t.Fatal(err)
	}
	if s, err = openState(path); err != nil {
		t.Fatal(err)
	}
	s.path = unwritable(t)
	if err := s.change(port(20001)); err != nil {
		t.Errorf("the same port again: %v", err)
	}
	if err := s.change(port(20002)); err == nil {
		t.Error("another port is not on disk, and nobody is told")
	}
}

// unwritable is a path that nothing can be written to, whoever tries.
func unwritable(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(file, "daemon")
}

// A daemon whose disk is full is often the way to its repair.
func TestWhatCannotBeRememberedEndsNothing(t *testing.T) {
	forgetful := func(home Home) *machine {
		m := &machine{t, home}
		up := make(chan struct{})
		m.run(func(ctx context.Context) error {
			return run(ctx, home, options{
				before: func(_ context.Context, d *Daemon) error { d.state.path = unwritable(t); return nil },
				ready:  func() { close(up) },
			})
		})
		await(t, up, "the daemon's socket")
		return m
	}
	home := newHome(t)
	write(t, home.file("daemon"), "{\"port\": %s}", freePort(t)) // not as it would be written
	forgetful(home)

	_, first := newRelay(t)
	nas, laptop := newMachine(t), forgetful(newHome(t))
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "nas"}, "exposed")
	laptop.holdFor(ConnectRequest{Name: "nas"}, "progress", func(e Event) bool { return strings.Contains(e.Message, "is not remembered") })
	eventually(t, "it listens all the same", func() bool {
		f := laptop.status().Forwards
		return len(f) == 1 && f[0].Local != ""
	})
	newTalk(t, "tcp", laptop.status().Forwards[0].Local).say("hello")
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"port":20001,"denied":{"nas":["tag:ops"]}}`))
	f.Add([]byte(`{"denier":{}}`))
	path := filepath.Join(f.TempDir(), "daemon")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openState(path)
		if err != nil {
			return
		}
		if err := s.change(func(f *stateFile) { f.Port++ }); err != nil {
			t.Fatal(err)
		}
		if _, err := openState(path); err != nil {
			t.Fatalf("%q does not read back: %v", data, err)
		}
	})
}
