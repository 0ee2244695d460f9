//go:build linux

package itest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/node"
	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// Two symmetric NATs cannot be punched. One router that opens ports is enough, by whichever protocol it does so.
func TestOneRouterThatMapsPortsMakesSymmetricHomesMeet(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]lab.Mapping{"PCP": lab.PCP, "NAT-PMP": lab.NATPMP, "UPnP": lab.UPnP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			a := l.Home("a", lab.Symmetric, slow(), lab.MapsPorts(by))
			b := l.Home("b", lab.Symmetric, slow())
			relays := oneRelay(t, l)
			pa := startPlayer(t, a.Host("a"), playerSpec{Number: 2, Relays: relays, Mapping: true})
			pb := startPlayer(t, b.Host("b"), playerSpec{Number: 3, Relays: relays, Mapping: true})
			pa.ready()
			pb.ready()
			pa.mapped("mapped")
			open := a.Forwards()
			if len(open) != 2 || open[0].Proto != "tcp" || open[1].Proto != "udp" || open[0].To.Port() != 4001 || open[1].To.Port() != 4001 {
				t.Errorf("the router has opened %+v, want 4001 by TCP and UDP", open)
			}
			meetSoon(t, pa, pb)
			meetSoon(t, pb, pa)
			pa.end()
			// By UPnP the library leaves one of the two, or both if it is in haste, to their lease of a minute.
			if left := a.Forwards(); len(left) > 0 && by != lab.UPnP {
				t.Errorf("left open at the end: %+v", left)
			}
		})
	}
}

// What the reason of a relayed path advises where nothing can be punched.
func TestAPortForwardedByHandMakesSymmetricHomesMeet(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	a, b := l.Home("a", lab.Symmetric, slow()), l.Home("b", lab.Symmetric, slow())
	relays := oneRelay(t, l)
	pa := startPlayer(t, a.Host("a"), playerSpec{Number: 2, Relays: relays})
	pb := startPlayer(t, b.Host("b"), playerSpec{Number: 3, Relays: relays})
	a.ForwardByHand(4001, pa.host, 4001)
	pa.ready()
	pb.ready()
	meetSoon(t, pa, pb)
	meetSoon(t, pb, pa)
}

// A router sends another port on than the one inside; nobody can find that out, but fwd.toml says it.
func TestAForwardedPortThatTheConfigNamesIsDialled(t *testing.T) {
	t.Parallel()
	w := beginWorld(t, lab.Symmetric, lab.Symmetric)
	nas := w.homes[0].Host("nas")
	w.homes[0].ForwardByHand(8443, nas, 24817)
	w.relaying.Wait("relay")
	w.nas, w.laptop = fwdtest.New(t, nas), fwdtest.New(t, w.homes[1].Host("laptop"))
	config := fmt.Sprintf("port = 24817\nannounce = [\"%s:8443\"]\n[[expose]]\ntarget = \"9000\"\nname = \"data\"\n", nas.PublicAddr())
	if err := os.WriteFile(filepath.Join(w.nas.Home, "fwd.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	w.data = fwdtest.ServePattern(t, nas, "127.0.0.1:9000")
	w.nas.Env = []string{"FWD_INVITE=" + w.relaying.Wait("invite").Invite}
	w.nas.Start("up").Wait("exposed")
	w.laptop.Join(w.relay.Invite(), "laptop")
	connect, local := w.connect()
	if path := pathIs(connect, "direct"); !strings.Contains(path.Remote, "/udp/8443/") {
		t.Errorf("direct by %s", path.Remote)
	}
	w.transfer(local, fwdtest.Load{Up: mib, Down: mib})
}

// Homes of one carrier meet at the addresses that it gave their routers, which is where these open ports.
func TestRoutersThatMapPortsMakeOneCarriersHomesMeet(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	c := l.Carrier("carrier", lab.Symmetric, lab.Between())
	relays := oneRelay(t, l)
	pa := startPlayer(t, l.Home("a", lab.Symmetric, slow(), lab.Behind(c), lab.MapsPorts(lab.PCP)).Host("a"), playerSpec{Number: 2, Relays: relays, Mapping: true})
	pb := startPlayer(t, l.Home("b", lab.Symmetric, slow(), lab.Behind(c)).Host("b"), playerSpec{Number: 3, Relays: relays, Mapping: true})
	pa.ready()
	pb.ready()
	if nat := pa.mapped("found"); !nat.DoubleNAT {
		t.Errorf("no double NAT: %+v", nat)
	}
	if m := pb.meetDirect(pa); !strings.Contains(m.Remote, "/100.64.") {
		t.Errorf("%+v, want direct by the carrier's address", m)
	}
}

// meetDirect has p reach b directly. Where a port is open that takes no time, but on a busy machine; fwd tries again after
// 5 s, and once more when the two have parted.
func (p *player) meetDirect(b *player) meeting {
	p.t.Helper()
	for try := 1; ; try++ {
		m := p.meetUntil(b, knownCeiling, func(m meeting) bool { return m.Route == "direct" })
		p.t.Logf("%s to %s: %+v", p.host.Name(), b.host.Name(), m)
		if m.Route == "direct" && m.Direct <= openCeiling {
			return m
		}
		if try == tries {
			p.t.Fatalf("%s does not meet %s directly within %v", p.host.Name(), b.host.Name(), openCeiling)
		}
		p.part(b)
		p.nat() // both have parted then
		b.nat()
	}
}

// meetSoon has one connect to the other and wants them direct as soon as can be, then apart again.
func meetSoon(t *testing.T, from, to *player) {
	t.Helper()
	from.meetDirect(to)
	from.part(to)
}

// oneRelay starts a relay at 7.0.0.10 and returns it as players take it.
func oneRelay(t *testing.T, l *lab.Lab) map[int][]string {
	t.Helper()
	startPlayer(t, l.Public("relay", "7.0.0.10"), playerSpec{Number: 1, Relay: true}).ready()
	return map[int][]string{1: {"/ip4/7.0.0.10/" + quic4001, "/ip4/7.0.0.10/" + tcp4001}}
}

// mapped waits until the player tells of its router's port mapping what is wanted.
func (p *player) mapped(want string) node.NATReport {
	p.t.Helper()
	for end := time.Now().Add(fwdtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		nat := p.nat()
		if nat.PortMapping == want && (want == "mapped" || nat.DoubleNAT) {
			return nat
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: port mapping %q, want %q", p.host.Name(), nat.PortMapping, want)
		}
	}
}

func TestWhoMovesHasPortsMappedInTheNewHome(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	a, b := l.Home("a", lab.Symmetric, lab.MapsPorts(lab.PCP)), l.Home("b", lab.Symmetric, lab.MapsPorts(lab.NATPMP))
	relays := oneRelay(t, l)
	laptop := a.Host("laptop")
	p := startPlayer(t, laptop, playerSpec{Number: 2, Relays: relays, Mapping: true})
	p.ready()
	for _, home := range []*lab.Home{a, b} {
		if home == b {
			laptop.MoveTo(b)
		}
		at := home.WAN().String()
		for end := time.Now().Add(time.Minute); ; {
			nat := p.mapped("mapped")
			if slices.ContainsFunc(nat.Public, func(m ma.Multiaddr) bool { return strings.Contains(m.String(), at) }) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("behind %s it tells %v", at, nat.Public)
			}
		}
	}
}

func TestRealRouterSoftwareMapsPorts(t *testing.T) {
	t.Parallel()
	for name, packets := range map[string]bool{"PCP": true, "UPnP": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			a := l.Home("a", lab.Symmetric, slow())
			if err := a.Miniupnpd(t.TempDir(), packets); errors.Is(err, lab.ErrNoMiniupnpd) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			relays := oneRelay(t, l)
			pa := startPlayer(t, a.Host("a"), playerSpec{Number: 2, Relays: relays, Mapping: true})
			pb := startPlayer(t, l.Home("b", lab.Symmetric, slow()).Host("b"), playerSpec{Number: 3, Relays: relays})
			pa.ready()
			pb.ready()
			pa.mapped("mapped")
			pb.meetDirect(pa)
		})
	}
}
