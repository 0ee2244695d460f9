//go:build linux

package itest

import (
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A network that began behind a NAT gets its first relay, which nobody there can be dialled by; later the
// relay moves to another address, at which nobody looks for it until told.
func TestAnOwnerBehindNATAddsARelayAndFollowsItsMove(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	a, b := l.Home("a", lab.PortRestricted, slow()), l.Home("b", lab.PortRestricted, slow())
	w := &world{t: t, lab: l, homes: [2]*lab.Home{a, b}, nas: fwdtest.New(t, a.Host("nas")), laptop: fwdtest.New(t, b.Host("laptop"))}
	w.expose()
	if r := w.nas.Run("invite", "--at", "7.0.0.10"); r.Code != 2 {
		t.Errorf("--at without --relay: exit %d\n%s", r.Code, r.Stderr)
	}
	code := w.nas.Invite("--relay", "--at", "7.0.0.10")
	w.nas.WaitStatus("a word that the relay does not answer yet", func(s fwdtest.Status) bool {
		return strings.Contains(strings.Join(s.Warnings, " "), "relay-waited-for")
	})
	if r := w.laptop.RunWith(code, "join"); r.Code != 2 {
		t.Errorf("an ordinary machine takes a relay's invite: exit %d\n%s", r.Code, r.Stderr)
	}

	vps := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	relaying := vps.Start("relay", code, "--as", "relay")
	relaying.Wait("waiting")
	contains(t, strings.Join(relaying.Wait("relay").Addrs, " "), "/ip4/7.0.0.10/"+quic4001)
	w.laptop.Join(w.nas.Invite(), "laptop")
	_, local := w.connect()
	w.transfer(local, load)
	if s := w.nas.Status(); len(s.Warnings) > 0 {
		t.Errorf("it still warns: %q", s.Warnings)
	}

	if r := w.laptop.Run("join", "--at", "7.0.0.10:4444"); r.Code != 6 {
		t.Errorf("an address where no relay is: exit %d\n%s", r.Code, r.Stderr)
	}

	relaying.Interrupt()
	moved := fwdtest.New(t, l.Public("moved", "7.0.0.20"))
	moved.Home = vps.Home
	moved.Start("relay").Wait("relay")
	for _, p := range []*fwdtest.Peer{w.laptop, w.nas} {
		p.Must("join", "--at", "7.0.0.20")
		p.WaitStatus("a reservation at the relay that moved", func(s fwdtest.Status) bool {
			return len(s.Relays) == 1 && s.Relays[0].Connected && s.Relays[0].Reserved
		})
	}
	phone := fwdtest.New(t, l.Home("c", lab.PortRestricted, slow()).Host("phone"))
	for until := time.Now().Add(fwdtest.Limit); ; { // the owner hears of the new address from the relay itself
		r := phone.RunWith(w.nas.Invite(), "join", "--as", "phone")
		if r.Code == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("no invite leads to the relay's new address: %s", r.Stderr)
		}
	}
	phone.WaitStatus("a reservation at the new address, which only the roster tells it", func(s fwdtest.Status) bool {
		return len(s.Relays) == 1 && s.Relays[0].Reserved
	})
	w.transfer(local, load)
}
