package daemon

import (
	"regexp"
	"strings"
	"testing"
)

// A person is told what was tried and what came of it; the libraries' own lines are for the log.
func TestWhoIsNotReachedIsToldInOnePlainLine(t *testing.T) {
	vps, first := newRelay(t)
	laptop, nas := newMachine(t), newMachine(t)
	laptop.must(JoinRequest{Invite: first, As: "laptop"}) // an admin
	nas.must(JoinRequest{Invite: laptop.invite(), As: "nas-box"})
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "nas"}, "exposed")
	laptop.must(PingRequest{Name: "nas-box", Count: 1})
	invite := laptop.invite()

	plain := func(err error, want string) {
		t.Helper()
		f := failureOf(err)
		if f.Exit != ExitUnreachable || !regexp.MustCompile(want).MatchString(f.What) {
			t.Errorf("got exit %d, %q; want %q", f.Exit, f.What, want)
		}
		for _, raw := range []string{"\n", "/ip4/", "12D3", "dial", "context"} {
			if strings.Contains(f.What, raw) {
				t.Errorf("%q is for no person: it has %q", f.What, raw)
			}
		}
	}
	// failure is what comes of a request once the connections that stood when the other side ended are known to be gone.
	failure := func(request any) (err error) {
		t.Helper()
		eventually(t, "what stood is gone", func() bool {
			_, err = laptop.call(request)
			return err != nil && !strings.Contains(err.Error(), "broke off")
		})
		return err
	}
	nas.must(StopRequest{})
	err := failure(PingRequest{Name: "nas-box", Count: 1})
	plain(err, `^nas-box cannot be reached now: tried \S+:\d+ \(.*refused by TCP.*relay vps \(not connected to it\)`)
	_, err = laptop.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: firstPause})
	plain(err, `^nas-box cannot be reached now: .*; it was tried for 1s$`)

	vps.must(StopRequest{})
	err = failure(RenameRequest{Peer: "nas-box", Name: "attic"})
	plain(err, `^vps cannot be reached now: tried 127\.0\.0\.1:\d+ \(.*refused by TCP`)
	_, err = newMachine(t).call(JoinRequest{Invite: invite})
	plain(err, `^cannot reach the network at 127\.0\.0\.1:\d+ \(.*refused by TCP`)
}
