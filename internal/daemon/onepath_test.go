package daemon

import (
	"context"
	"strings"
	"testing"
	"time"
)

// callPath asks for a forward that ought to be refused at once.
func (m *machine) callPath(name, local, path string) *Failure {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, m.home)
	if err != nil {
		m.t.Fatal(err)
	}
	listening := false
	err = c.Call(ctx, ConnectRequest{Name: name, Local: local, Path: path}, func(e Event) {
		if e.Event == "listening" {
			listening = true
			cancel()
		}
	})
	if listening || err == nil {
		m.t.Fatalf("--path %s beside the opposite is not refused", path)
	}
	return failureOf(err)
}

func TestOppositePathsToOneMachineAreRefused(t *testing.T) {
	nas, laptop := newPair(t)
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "app"}, "exposed")
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "web"}, "exposed")
	for path, opposite := range map[string]string{"relay": "direct", "direct": "relay"} {
		e, _ := laptop.hold(ConnectRequest{Name: "app", Local: "127.0.0.1:0", Path: path}, "listening")
		for _, name := range []string{"app", "web"} {
			for _, local := range []string{"0", "-"} {
				f := laptop.callPath(name, local, opposite)
				if f.Exit != ExitUsage || !strings.Contains(f.What, "app at "+e.Local+" goes to nas-box by --path "+path) ||
					!strings.Contains(f.Hint, "fwd disconnect "+e.Local+") or say the same --path") {
					t.Errorf("%s %s: %+v", name, local, f)
				}
			}
		}
		_, endSame := laptop.hold(ConnectRequest{Name: "web", Local: "127.0.0.1:0", Path: path}, "listening")
		_, endAuto := laptop.hold(ConnectRequest{Name: "web", Local: "127.0.0.1:0"}, "listening")
		endSame()
		endAuto()
		laptop.must(DisconnectRequest{Local: e.Local})
		eventually(t, "no forward is left", func() bool { return len(laptop.status().Forwards) == 0 })
	}
}

// What moves is the link: each forward over it is told the path that it has, and what is open follows.
func TestAllForwardsToAMachineTellTheOnePathInUse(t *testing.T) {
	nas, laptop := newPair(t)
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "app"}, "exposed")
	paths := make(chan string, 64)
	laptop.holdFor(ConnectRequest{Name: "app", Local: "127.0.0.1:0"}, "path", func(e Event) bool {
		if e.Path != nil {
			paths <- e.Path.Kind
		}
		return true
	})
	told := func(kind string) {
		t.Helper()
		for end := time.After(patience); ; {
			select {
			case got := <-paths:
				if got == kind {
					return
				}
			case <-end:
				t.Fatalf("no event tells the path %s", kind)
			}
		}
	}
	told("direct")
	laptop.goBy("direct", 1)
	opened(t, laptop.status().Forwards[0].Local)
	moves := func() int {
		for _, s := range laptop.status().Sessions {
			return s.Migrations
		}
		return -1
	}
	eventually(t, "a connection is open", func() bool { return moves() >= 0 })
	before := moves()
	_, end := laptop.hold(ConnectRequest{Name: "app", Local: "127.0.0.1:0", Path: "relay"}, "listening")
	told("relay")
	laptop.goBy("relay", 2)
	eventually(t, "the open connection moves to the relay", func() bool { return moves() > before })
	before = moves()
	end()
	told("direct")
	laptop.goBy("direct", 1)
	eventually(t, "the open connection moves back", func() bool { return moves() > before })
}
