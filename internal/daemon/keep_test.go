package daemon

import (
	"net"
	"slices"
	"strings"
	"testing"
)

// keptConnects are what --keep was said with, each one's words for where to listen another.
var keptConnects = map[string]any{
	"no local address": ConnectRequest{Name: "web", Keep: true},
	"a free port":      ConnectRequest{Name: "web", Local: "0", Keep: true},
	"capitals":         ConnectRequest{Name: "WEB", Keep: true},
	"SOCKS":            SocksRequest{Local: "0", Keep: true},
}

func port(t *testing.T, local string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(local)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestDisconnectTakesBackWhatFwdUpKeeps(t *testing.T) {
	relay, first := newRelay(t)
	relay.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "web"}, "exposed")
	home := newHome(t)
	laptop := newUp(t, home, UpRequest{Invite: first})
	eventually(t, "it has joined", func() bool { return laptop.status().Network != nil })
	disconnect := func(what string, request any, word func(local string) string) {
		events := laptop.must(request)
		i := slices.IndexFunc(events, func(e Event) bool { return e.Event == "listening" })
		if i < 0 {
			t.Fatalf("%s: it says %+v", what, events)
		}
		laptop.must(DisconnectRequest{Local: word(events[i].Local)})
		if r := laptop.reload(); !r.empty() {
			t.Errorf("%s: the next reading of fwd.toml brings %s", what, r)
		}
	}
	for what, request := range keptConnects {
		disconnect(what, request, func(local string) string { return port(t, local) })
	}
	disconnect("by the name", ConnectRequest{Name: "WEB", Keep: true}, func(string) string { return "web" })
	disconnect("by the name in capitals", ConnectRequest{Name: "web", Keep: true}, func(string) string { return "WEB" })

	laptop.must(StopRequest{})
	if err := AwaitEnd(t.Context(), home); err != nil {
		t.Fatal(err)
	}
	if wishes := newUp(t, home, UpRequest{}).status().Wishes; len(wishes) > 0 {
		t.Errorf("the next start brings %+v", wishes)
	}
}

func TestDisconnectTakesBackWhatACommandKeeps(t *testing.T) {
	relay, first := newRelay(t)
	relay.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "web"}, "exposed")
	relay.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "other"}, "exposed")
	laptop := newMachine(t)
	laptop.must(JoinRequest{Invite: first})
	kept := func(e Event) bool { return strings.HasPrefix(e.Message, "kept; ") }
	for what, request := range keptConnects {
		laptop.holdFor(request, "progress", kept)
		laptop.must(DisconnectRequest{Local: port(t, laptop.status().Forwards[0].Local)})
		s, err := openState(laptop.home.file("daemon"))
		if err != nil {
			t.Fatal(err)
		}
		if left := s.Kept.wishes(); len(left) > 0 {
			t.Fatalf("%s: %q is kept still", what, left[0].key)
		}
	}
	// One that is not kept ends alone, be it the same service's.
	laptop.holdFor(ConnectRequest{Name: "web", Keep: true}, "progress", kept)
	other, _ := laptop.hold(ConnectRequest{Name: "web", Local: "0"}, "listening")
	laptop.must(DisconnectRequest{Local: port(t, other.Local)})

	// A service's name means all its forwards that are there.
	laptop.hold(ConnectRequest{Name: "other", Local: "0"}, "listening")
	laptop.hold(ConnectRequest{Name: "other", Local: "0"}, "listening")
	laptop.must(DisconnectRequest{Local: "other"})
	if left := laptop.status().Forwards; len(left) != 1 || left[0].Service != "web" {
		t.Errorf("without those of the other service there is %+v", left)
	}

	laptop.must(StopRequest{})
	if err := AwaitEnd(t.Context(), laptop.home); err != nil {
		t.Fatal(err)
	}
	laptop.home.Config = laptop.home.file("fwd.toml")
	wishes := newUp(t, laptop.home, UpRequest{}).status().Wishes
	if len(wishes) != 1 || wishes[0].Wish != "connect web" {
		t.Errorf("fwd up has %+v", wishes)
	}
}
