//go:build linux

package itest

import (
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

const year = 365*24*time.Hour + time.Hour // whole days, to the second

// A clock that is a year behind and one that is a year ahead keep nobody from joining, exposing and connecting: TCP asks for
// no date. Both machines are told, and what ended does not begin again because a clock was set back further.
func TestClocksAYearOffCostTheDirectPathAndNothingElse(t *testing.T) {
	if testing.Short() {
		t.Skip("builds fwd with a standard library of its own")
	}
	t.Parallel()
	fwdtest.Shifted(t) // before anything waits for it
	w := beginWorld(t, lab.PortRestricted, lab.PortRestricted)
	w.relaying.Wait("relay")
	w.nas, w.laptop = fwdtest.New(t, w.homes[0].Host("nas")), fwdtest.New(t, w.homes[1].Host("laptop"))
	guest := fwdtest.New(t, w.homes[1].Host("guest"))
	w.nas.Clock, w.laptop.Clock = -year, year
	w.nas.Join(w.relaying.Wait("invite").Invite, "nas-box")
	w.laptop.Join(w.relay.Invite(), "laptop")
	w.expose()
	_, local := w.connect()
	w.transfer(local, load)
	for p, is := range map[*fwdtest.Peer]string{w.nas: "365 days slow", w.laptop: "365 days fast"} {
		s := p.WaitStatus("the clock is "+is, func(s fwdtest.Status) bool { return warned(s, is) })
		for _, text := range s.Warnings {
			if !strings.Contains(text, "set it") || !strings.Contains(text, "no QUIC") {
				t.Errorf("%s is warned of %q, and of that clock alone it should be", p.Host.Name(), text)
			}
		}
		said := p.Run("doctor")
		contains(t, said.Stdout, is)
		contains(t, said.Stdout, "set it: timedatectl")
	}

	// A guest's access ends, by what the owner signed, on the machine whose clock will not be there for a year.
	const access = 20 * time.Second
	joined := time.Now()
	guest.Join(w.relay.Invite("--only", "data", "--for", access.String()), "guest")
	p := guest.Start("connect", "data", "127.0.0.1:2222")
	p.Wait("listening")
	if _, err := w.data.TransferFrom(guest.Host, "127.0.0.1:2222", fwdtest.Load{Up: 1000, Down: 1000}); err != nil && time.Since(joined) < access {
		t.Errorf("a guest: %v", err)
	}
	time.Sleep(time.Until(joined.Add(access + time.Second)))
	for range 2 {
		w.relay.Must("rename", "laptop", "notebook")
		epoch := w.relay.Status().Network.Epoch
		w.nas.WaitStatus("the epoch", func(s fwdtest.Status) bool { return s.Network != nil && s.Network.Epoch >= epoch })
		if r := guest.Run("connect", "data", "-", "--timeout", "3s"); r.Code == 0 {
			t.Error("a guest whose time is over is served")
		}
		w.relay.Must("rename", "notebook", "laptop")
		w.nas.Must("stop")
		w.nas.Clock = -2 * year
		w.nas.Start("expose", w.data.Addr(), "--name", "data").Wait("exposed")
	}
	w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000})
}

// What an owner signed while its clock was a year ahead counts until it says that its clock is right.
func TestAnOwnerCorrectsWhatItSignedByAWrongClock(t *testing.T) {
	if testing.Short() {
		t.Skip("builds fwd with a standard library of its own")
	}
	t.Parallel()
	fwdtest.Shifted(t) // before anything waits for it
	l := lab.New(t)
	relay, nas := fwdtest.New(t, l.Public("relay", "7.0.0.10")), fwdtest.New(t, l.Public("nas", "7.0.0.11"))
	relay.Clock = year
	relaying := relay.Start("relay", "--as", "relay")
	relaying.Wait("relay")
	nas.Join(relaying.Wait("invite").Invite, "nas-box")
	nas.WaitStatus("its clock is not the owner's", func(s fwdtest.Status) bool { return warned(s, "365 days slow") })

	relaying.Interrupt()
	relay.Clock = 0
	relay.Start("relay").Wait("relay")
	relay.WaitStatus("it has signed ahead of its clock", func(s fwdtest.Status) bool { return warned(s, "fwd owner sign") })
	nas.WaitStatus("whose mistake it was", func(s fwdtest.Status) bool { return warned(s, "fwd owner sign") })
	contains(t, relay.Must("owner", "sign"), "signed at ")
	for _, p := range []*fwdtest.Peer{relay, nas} {
		p.WaitStatus("no word of clocks", func(s fwdtest.Status) bool { return !warned(s, "clock-wrong") })
	}
	if r := nas.Run("owner", "sign"); r.Code != 4 {
		t.Errorf("who is not the owner signs: exit %d", r.Code)
	}
}

func warned(s fwdtest.Status, of string) bool {
	return strings.Contains(strings.Join(s.Warnings, "\n"), of)
}
