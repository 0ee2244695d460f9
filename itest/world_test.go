//go:build linux

package itest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// delay is one way on each access cable: 80 ms between two homes and back, 40 ms to the relay.
const delay = 20 * time.Millisecond

// slow is a home's usual cable in these tests.
func slow() lab.Option { return lab.Slow(delay) }

// world is the usual set-up: a public relay that owns the network, and two homes, with a NAS that exposes a
// pattern server as "data" in one and a laptop that uses it in the other.
type world struct {
	t     *testing.T
	lab   *lab.Lab
	homes [2]*lab.Home // the NAS's and the laptop's

	relay, nas, laptop *fwdtest.Peer
	relaying           *fwdtest.Process
	data               *fwdtest.PatternServer
	env                [2][]string // variables of the NAS's and the laptop's fwd
}

// newWorld builds it up to where the NAS exposes "data".
func newWorld(t *testing.T, a, b lab.NAT, opts ...lab.Option) *world {
	t.Helper()
	w := beginWorld(t, a, b, opts...)
	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	return w
}

// beginWorld is a world without its two machines.
func beginWorld(t *testing.T, a, b lab.NAT, opts ...lab.Option) *world {
	t.Helper()
	l := lab.New(t)
	opts = append([]lab.Option{slow()}, opts...)
	w := &world{t: t, lab: l, homes: [2]*lab.Home{l.Home("a", a, opts...), l.Home("b", b, opts...)}}
	w.relay = fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	w.relaying = w.relay.Start("relay", "--as", "relay")
	return w
}

// populate lets a NAS and a laptop join by the relay's invites, and the NAS expose "data".
func (w *world) populate(nas, laptop *lab.Host) {
	w.t.Helper()
	w.relaying.Wait("relay")
	first := w.relaying.Wait("invite").Invite
	w.nas, w.laptop = fwdtest.New(w.t, nas), fwdtest.New(w.t, laptop)
	w.nas.Env, w.laptop.Env = w.env[0], w.env[1]
	w.nas.Join(first, "nas-box")
	w.laptop.Join(w.relay.Invite(), "laptop")
	w.expose()
}

func (w *world) expose() {
	w.t.Helper()
	w.data = fwdtest.ServePattern(w.t, w.nas.Host, "127.0.0.1:9000")
	w.nas.Start("expose", w.data.Addr(), "--name", "data").Wait("exposed")
}

// connect has the laptop connect "data" and returns the process and the local address.
func (w *world) connect(flags ...string) (p *fwdtest.Process, local string) {
	w.t.Helper()
	p = w.laptop.Start(append([]string{"connect", "data", "127.0.0.1:2222"}, flags...)...)
	return p, p.Wait("listening").Local
}

// transfer moves a load through the forward; anything but equal hashes is fatal.
func (w *world) transfer(local string, load fwdtest.Load) fwdtest.Report {
	w.t.Helper()
	r, err := w.data.TransferFrom(w.laptop.Host, local, load)
	if err != nil {
		w.t.Fatalf("transfer: %v", err)
	}
	w.t.Logf("%d KiB up, %d KiB down in %v, longest stall %v", load.Up>>10, load.Down>>10, r.Took, r.Stall)
	return r
}

// pathIs waits for a "path" event of that kind.
func pathIs(p *fwdtest.Process, kind string) fwdtest.Path {
	return *p.WaitFor("path", func(e fwdtest.Event) bool { return e.Path != nil && e.Path.Kind == kind }).Path
}

// ways is what the core has carried, by way.
type ways struct {
	udp, tcp uint64 // bytes between the two homes
	relayed  uint64 // bytes between the homes and the relay
}

// carried reads the core's counters. Call lab.ForgetFlows before what is to be measured.
func (w *world) carried() ways {
	w.t.Helper()
	var sum ways
	home := func(a netip.Addr) bool { return a == w.nas.Host.PublicAddr() || a == w.laptop.Host.PublicAddr() }
	for _, f := range w.lab.Flows() {
		switch {
		case !home(f.Src.Addr()) || !home(f.Dst.Addr()):
			sum.relayed += f.Bytes
		case f.Proto == "udp":
			sum.udp += f.Bytes
		default:
			sum.tcp += f.Bytes
		}
	}
	return sum
}

// settle moves little loads until they go as wanted, and begins the count anew: sessions follow a new path when
// their lanes have been attached to it, not at the instant it is told.
func (w *world) settle(local string, wanted func(ways) bool) {
	w.t.Helper()
	w.untilCarried(local, fwdtest.Load{Up: 64 << 10, Down: 64 << 10}, wanted)
}

// untilCarried moves loads until one goes as wanted: on a machine that is busy a path may be silent for a second, and
// bytes go by another meanwhile.
func (w *world) untilCarried(local string, load fwdtest.Load, wanted func(ways) bool) {
	w.t.Helper()
	for deadline, n := time.Now().Add(fwdtest.Limit), 1; ; n++ {
		w.lab.ForgetFlows()
		r, err := w.data.TransferFrom(w.laptop.Host, local, load)
		if err != nil {
			w.t.Fatalf("transfer %d: %v; %s", n, err, w.laptop.Run("status", "--json").Stdout)
		}
		got := w.carried()
		w.lab.ForgetFlows()
		if wanted(got) {
			return
		}
		if time.Now().After(deadline) {
			for _, p := range []*fwdtest.Peer{w.laptop, w.nas} {
				w.t.Logf("%s: %s\n%s", p.Host.Name(), p.Run("status", "--json").Stdout, p.Stacks("internal/punch", "node.(*Node).keep"))
			}
			w.t.Fatalf("after %v and %d transfers still %+v, the last took %v", fwdtest.Limit, n, got, r.Took)
		}
	}
}

const mib = 1 << 20

// load is what most scenarios move: enough for many packets, little enough for many scenarios.
var load = fwdtest.Load{Up: 4 * mib, Down: 6 * mib}

func contains(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%q does not contain %q", text, want)
	}
}
