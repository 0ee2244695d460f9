//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"fwd/itest/leaks"
)

func TestMain(m *testing.M) { Main(m) }

// limit is for what should happen; quiet is how long silence must last to count as silence.
const (
	limit = 10 * time.Second
	quiet = 50 * time.Millisecond
)

func TestEachNATMapsAndFiltersAsNamed(t *testing.T) {
	same := func(local uint16, ports []uint16) bool {
		return !slices.ContainsFunc(ports, func(p uint16) bool { return p != local })
	}
	within := func(lo, hi uint16, ports []uint16) bool {
		return !slices.ContainsFunc(ports, func(p uint16) bool { return p < lo || p > hi })
	}
	distinct := func(ports []uint16) bool {
		p := slices.Sorted(slices.Values(ports))
		return len(slices.Compact(p)) == len(ports)
	}
	independent := func(local uint16, p []uint16) bool { return same(local, p) }
	for kind, want := range map[NAT]struct {
		mapping func(local uint16, ports []uint16) bool
		hears   string // of strangers
	}{
		Open:                      {independent, "new port, new address"},
		FullCone:                  {independent, "new port, new address"},
		AddressRestricted:         {independent, "new port"},
		PortRestricted:            {independent, ""},
		PortRestrictedInputAccept: {independent, ""},
		PortRange: {func(local uint16, p []uint16) bool {
			return same(p[0], p) && p[0] != local && within(61000, 65000, p)
		}, ""},
		Symmetric:      {func(local uint16, p []uint16) bool { return distinct(p) && within(1024, 65535, p) }, ""},
		SymmetricBlock: {func(local uint16, p []uint16) bool { return distinct(p) && within(50000, 50511, p) }, ""},
		Sequential: {func(local uint16, p []uint16) bool {
			return p[1] == p[0]+1 && p[2] == p[1]+1 && p[3] == p[2]+1
		}, ""},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			h := l.Home("a", kind).Host("h")

			c := udp(t, h, ":0")
			local := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			var ports []uint16
			for _, s := range r.sockets() {
				ports = append(ports, r.observe(t, c, s).Port())
			}
			if !want.mapping(local, ports) {
				t.Errorf("port %d is mapped to %v for four endpoints", local, ports)
			}

			c = udp(t, h, ":0")
			mapped := r.observe(t, c, r.a1)
			if mapped.Addr() != h.PublicAddr() {
				t.Errorf("comes from %v, want %v", mapped.Addr(), h.PublicAddr())
			}
			send(t, r.a2, mapped, "new port")
			send(t, r.b1, mapped, "new address")
			send(t, r.a1, mapped, "answer")
			heard := hear(t, c, "answer")
			if got := strings.Join(heard, ", "); got != want.hears {
				t.Errorf("hears of strangers: %q, want %q", got, want.hears)
			}
			tcpWorks(t, h, r.b)
		})
	}
}

func TestUDPBlockedLetsOnlyTCPThrough(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	h := l.Home("a", UDPBlocked).Host("h")
	send(t, udp(t, h, ":0"), addrPort(r.a1), "lost")
	tcpWorks(t, h, r.a)
	if n, _ := l.Packets("udp", netip.Addr{}, netip.Addr{}); n != 0 {
		t.Errorf("the core carried %d UDP packets", n)
	}
}

func TestRouterThatAcceptsStrangersSpoilsThePort(t *testing.T) {
	for kind, spoilt := range map[NAT]bool{PortRestricted: false, PortRestrictedInputAccept: true} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			home := l.Home("a", kind)
			h := home.Host("h")
			send(t, r.a1, netip.AddrPortFrom(home.WAN(), 5000), "too early")
			c := udp(t, h, ":5000")
			if got := r.observe(t, c, r.a1).Port() != 5000; got != spoilt {
				t.Errorf("port moved: %v, want %v", got, spoilt)
			}
		})
	}
}

func TestHairpinOnlyWhereAsked(t *testing.T) {
	for name, tc := range map[string]struct {
		kind NAT
		opts []Option
		want bool
	}{
		"port restricted, none": {PortRestricted, nil, false},
		"port restricted":       {PortRestricted, []Option{Hairpin()}, true},
		"full cone":             {FullCone, []Option{Hairpin()}, true},
		"port range":            {PortRange, []Option{Hairpin()}, true},
		"full cone, none":       {FullCone, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			home := l.Home("a", tc.kind, tc.opts...)
			one, two := udp(t, home.Host("one"), ":0"), udp(t, home.Host("two"), ":0")
			r.observe(t, one, r.a1)
			mapped := r.observe(t, two, r.a1)
			send(t, one, mapped, "round the pin")
			if got := arrives(t, two, "round the pin", tc.want); got != tc.want {
				t.Errorf("arrived: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestCarrierTranslatesItsCustomersOnceMore(t *testing.T) {
	for name, hairpin := range map[string]bool{"hairpin": true, "no hairpin": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			var opts []Option
			if hairpin {
				opts = append(opts, Hairpin())
			}
			carrier := l.Carrier("carrier", FullCone, opts...)
			a, b := l.Home("a", FullCone, Behind(carrier)), l.Home("b", FullCone, Behind(carrier))
			one, two := udp(t, a.Host("one"), ":0"), udp(t, b.Host("two"), ":0")
			for _, c := range []*net.UDPConn{one, two} {
				if got := r.observe(t, c, r.a1).Addr(); got != carrier.WAN() {
					t.Errorf("comes from %v, want the carrier's %v", got, carrier.WAN())
				}
			}
			send(t, one, r.observe(t, two, r.a1), "by the carrier")
			if got := arrives(t, two, "by the carrier", hairpin); got != hairpin {
				t.Errorf("by the external address: %v, want %v", got, hairpin)
			}
			send(t, one, netip.AddrPortFrom(b.WAN(), addrPort(two).Port()), "inside")
			if arrives(t, two, "inside", false) {
				t.Error("customers reach each other inside the carrier's net")
			}
			tcpWorks(t, a.hosted(t), r.a)
		})
	}
}

func TestCloudHostIsReachableAtItsPublicAddress(t *testing.T) {
	t.Parallel()
	l := New(t)
	vps := l.Cloud("vps", "7.0.0.20")
	if !vps.Addr().IsPrivate() || vps.PublicAddr() != netip.MustParseAddr("7.0.0.20") {
		t.Errorf("addresses %v inside, %v outside", vps.Addr(), vps.PublicAddr())
	}
	far := l.Home("a", Symmetric).Host("h")
	c, s := udp(t, far, ":0"), udp(t, vps, ":4001")
	send(t, c, netip.MustParseAddrPort("7.0.0.20:4001"), "hello")
	_, from := receive(t, s)
	send(t, s, from, "answer")
	if text, from := receive(t, c); text != "answer" || from.String() != "7.0.0.20:4001" {
		t.Errorf("%q from %v", text, from)
	}
	tcpWorks(t, far, vps)
	tcpWorks(t, vps, vps) // by its own public address
}

func TestFirewallOpensOnlyWhatItIsTold(t *testing.T) {
	t.Parallel()
	l := New(t)
	h := l.Public("h", "7.0.0.20", Firewall("udp/4001"))
	far := udp(t, l.Public("far", "7.0.0.21"), ":0")
	closed, open := udp(t, h, ":4000"), udp(t, h, ":4001")
	send(t, far, netip.AddrPortFrom(h.Addr(), 4000), "no")
	send(t, far, netip.AddrPortFrom(h.Addr(), 4001), "yes")
	receive(t, open)
	if arrives(t, closed, "no", false) {
		t.Error("a closed port hears strangers")
	}
	send(t, closed, addrPortOf(l, far), "call")
	_, from := receive(t, far)
	send(t, far, from, "answer")
	receive(t, closed)
}

func TestWireDelaysLosesAndLimits(t *testing.T) {
	t.Run("delay", func(t *testing.T) {
		t.Parallel()
		l := New(t)
		r := newReflectors(t, l)
		h := l.Home("a", PortRestricted, Slow(30*time.Millisecond)).Host("h")
		c := udp(t, h, ":0")
		until(t, "a round trip over a wire of 30 ms takes at most 90", func() bool {
			start := time.Now()
			mapped := r.observe(t, c, r.a1)
			send(t, r.a1, mapped, "pong")
			receive(t, c)
			took := time.Since(start)
			if took < 60*time.Millisecond {
				t.Fatalf("round trip %v over a wire of 30 ms", took)
			}
			return took <= 90*time.Millisecond
		})
	})
	t.Run("loss", func(t *testing.T) {
		t.Parallel()
		l := New(t)
		r := newReflectors(t, l)
		h := l.Home("a", PortRestricted, Shaped(Shape{Loss: 0.2}, Shape{})).Host("h")
		c := udp(t, h, ":0")
		for range 1000 {
			send(t, c, addrPort(r.a1), "x")
			r.a1.SetReadDeadline(time.Now()) // paced by reading, so that no buffer overflows
			r.a1.ReadFromUDPAddrPort(make([]byte, 100))
		}
		// A wire keeps the order: when a later packet is here, all that were not lost have been counted.
		later := uint64(0)
		until(t, "a later packet arrives", func() bool {
			later++
			send(t, c, addrPort(r.a1), "later")
			return arrives(t, r.a1, "later", false)
		})
		n, _ := l.Packets("udp", h.PublicAddr(), r.a.Addr())
		if n < 700 || n > 900+later {
			t.Errorf("%d of 1000 packets at 20 %% loss", n)
		}
	})
	t.Run("rate", func(t *testing.T) {
		t.Parallel()
		l := New(t)
		far := l.Public("far", "7.0.0.10")
		h := l.Home("a", PortRestricted, Shaped(Shape{Rate: 20e6}, Shape{Rate: 20e6})).Host("h")
		const size = 1 << 20 // 0.42 s at 20 Mbit/s
		until(t, "1 MiB at 20 Mbit/s takes at most 2 s", func() bool {
			start := time.Now()
			transfer(t, h, far, size)
			took := time.Since(start)
			if took < 400*time.Millisecond {
				t.Fatalf("1 MiB at 20 Mbit/s in %v", took)
			}
			return took <= 2*time.Second
		})
	})
}

func TestSmallMTUIsFoundByTCP(t *testing.T) {
	t.Parallel()
	l := New(t)
	far := l.Public("far", "7.0.0.10")
	h := l.Home("a", PortRestricted, MTU(1280)).Host("h")
	transfer(t, h, far, 200<<10)
	transfer(t, far, l.Home("b", Open, MTU(1280)).Host("open"), 200<<10)
}

func TestCutIsSilentAndHeals(t *testing.T) {
	for name, shape := range map[string][]Option{"veth": nil, "wire": {Slow(time.Millisecond)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			home := l.Home("a", PortRestricted, shape...)
			h := home.Host("h")
			c := udp(t, h, ":0")
			works := func(up, down bool) {
				t.Helper()
				send(t, c, addrPort(r.a1), "ping")
				if got := arrives(t, r.a1, "ping", up); got != up {
					t.Errorf("up: %v, want %v", got, up)
				}
				send(t, r.a1, netip.AddrPortFrom(home.WAN(), addrPort(c).Port()), "pong")
				if got := arrives(t, c, "pong", down); got != down {
					t.Errorf("down: %v, want %v", got, down)
				}
			}
			works(true, true)
			for _, cable := range []*Cable{home.Cable(), h.Cable()} {
				cable.Cut()
				works(false, false)
				cable.Heal()
				works(true, true)
			}
			home.Cable().CutUp()
			works(false, true)
			home.Cable().CutDown()
			works(true, false)
			home.Cable().Heal()
			works(true, true)
			home.Cable().Unplug()
			works(false, false)
			home.Cable().Plug()
			until(t, "the link is back", func() bool {
				send(t, c, addrPort(r.a1), "ping")
				return arrives(t, r.a1, "ping", false)
			})
		})
	}
}

func TestBlockUDPStopsFlowsThatExist(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	home := l.Home("a", FullCone)
	h := home.Host("h")
	c := udp(t, h, ":0")
	r.observe(t, c, r.a1)
	home.BlockUDP()
	send(t, c, addrPort(r.a1), "lost")
	if arrives(t, r.a1, "lost", false) {
		t.Error("UDP passes")
	}
	tcpWorks(t, h, r.a)
	home.UnblockUDP()
	r.observe(t, c, r.a1)
}

func TestFlushNATForgetsWhoMayCallIn(t *testing.T) {
	for _, kind := range []NAT{PortRestricted, FullCone} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			home := l.Home("a", kind)
			c := udp(t, home.Host("h"), ":0")
			mapped := r.observe(t, c, r.a1)
			send(t, r.a1, mapped, "before")
			receive(t, c)
			home.FlushNAT()
			send(t, r.a1, mapped, "after")
			if arrives(t, c, "after", false) {
				t.Error("the mapping survived")
			}
			r.observe(t, c, r.a1)
		})
	}
}

func TestChangeAddressLeavesTheOldOneDead(t *testing.T) {
	for name, shape := range map[string][]Option{"veth": nil, "wire": {Slow(time.Millisecond)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			r := newReflectors(t, l)
			home := l.Home("a", FullCone, shape...)
			c := udp(t, home.Host("h"), ":0")
			old := r.observe(t, c, r.a1)
			for range 3 {
				now := home.ChangeAddress()
				mapped := r.observe(t, c, r.a1)
				if mapped.Addr() != now || now == old.Addr() {
					t.Errorf("comes from %v, the address is %v, was %v", mapped.Addr(), now, old.Addr())
				}
				send(t, r.a1, old, "old")
				send(t, r.a1, mapped, "new")
				if heard := hear(t, c, "new"); len(heard) > 0 {
					t.Errorf("hears %v by the old address", heard)
				}
				old = mapped
			}
		})
	}
}

func TestTrackingShortensTheLifeOfMappings(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	home := l.Home("a", PortRestricted, Tracking(Conntrack{UDP: time.Second, UDPStream: time.Second}))
	c := udp(t, home.Host("h"), ":0")
	mapped := r.observe(t, c, r.a1)
	until(t, "the mapping is gone", func() bool {
		time.Sleep(1200 * time.Millisecond) // each try that gets through gives it another second
		send(t, r.a1, mapped, "late")
		return !arrives(t, c, "late", false)
	})
}

func TestMovedHostTakesItsProgramsAlong(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	a, b := l.Home("a", PortRestricted, IPv6()), l.Home("b", FullCone, IPv6())
	h := a.Host("laptop")
	b.Host("other")
	c := udp(t, h, ":0")
	was := r.observe(t, c, r.a1)
	h.MoveTo(b)
	if now := r.observe(t, c, r.a1); was.Addr() != a.WAN() || now.Addr() != b.WAN() {
		t.Errorf("came from %v, now from %v", was, now)
	}
	tcpWorks(t, h, r.a)
}

func TestSeverSeparatesOnlyThePair(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	h := l.Home("a", PortRestricted).Host("h")
	c := udp(t, h, ":0")
	mend := l.Sever(h.PublicAddr(), r.a.Addr())
	send(t, c, addrPort(r.a1), "lost")
	r.observe(t, c, r.b1)
	if arrives(t, r.a1, "lost", false) {
		t.Error("the pair still talks")
	}
	mend()
	r.observe(t, c, r.a1)
}

func TestIPv6LetsInOnlyWhoWasCalled(t *testing.T) {
	for name, opts := range map[string][]Option{"veth": {IPv6()}, "wire": {IPv6(), Slow(time.Millisecond)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t)
			carrier := l.Carrier("carrier", PortRestricted, opts...)
			for _, h := range []*Host{
				l.Home("a", PortRestricted, opts...).Host("a"),
				l.Home("b", PortRestricted, append(opts, Behind(carrier))...).Host("b"),
				l.Public("c", "7.0.0.30", opts...),
			} {
				far := l.Public("far of "+h.Name(), "7.0.1."+fmt.Sprint(h.Addr().As4()[3]), opts...)
				there, here := udp(t, far, ":0"), udp(t, h, ":0")
				mine := netip.AddrPortFrom(h.Addr6(), addrPort(here).Port())
				theirs := netip.AddrPortFrom(far.Addr6(), addrPort(there).Port())
				send(t, there, mine, "stranger")
				want := h.home == nil
				if got := arrives(t, here, "stranger", want); got != want {
					t.Errorf("%s hears a stranger: %v, want %v", h.Name(), got, want)
				}
				send(t, here, theirs, "call")
				if text, from := receive(t, there); text != "call" || from != mine {
					t.Errorf("%q from %v, want %v", text, from, mine)
				}
				send(t, there, mine, "answer")
				receive(t, here)
			}
		})
	}
}

func TestCoreCountsWhatItCarriesAndIsSomeHops(t *testing.T) {
	t.Parallel()
	l := New(t)
	r := newReflectors(t, l)
	h := l.Home("a", PortRestricted).Host("h")
	c := udp(t, h, ":5000")
	for range 7 {
		r.observe(t, c, r.a1)
	}
	raw, err := c.SyscallConn()
	check(t, err)
	// Home router, core, and the far host takes it: what dies in the core does not arrive.
	arrivesWith := func(ttl int, want bool) {
		t.Helper()
		check(t, raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl) }))
		text := fmt.Sprint("ttl ", ttl)
		send(t, c, addrPort(r.b1), text)
		if got := arrives(t, r.b1, text, want); got != want {
			t.Errorf("TTL %d arrives: %v", ttl, got)
		}
	}
	arrivesWith(1+coreRouters, false)
	arrivesWith(1+coreRouters+1, true)
	packets, bytes := l.Packets("udp", h.PublicAddr(), r.a.Addr())
	if packets != 7 || bytes != 7*(20+8+5) {
		t.Errorf("%d packets, %d bytes; sent 7 of 33", packets, bytes)
	}
	if f := l.Flows()[0]; f.Src.Port() != 5000 || f.Dst.Port() != 1001 || f.Packets != 7 {
		t.Errorf("the busiest flow is %v", f)
	}
	if n, _ := l.Packets("udp", netip.Addr{}, r.b.Addr()); n != 1 {
		t.Errorf("%d packets to the second host, want 1", n)
	}
	l.ForgetFlows()
	if flows := l.Flows(); len(flows) != 0 {
		t.Errorf("after ForgetFlows: %v", flows)
	}
	l.Near()
	arrivesWith(2, false)
	arrivesWith(3, true)
}

func TestLabsSideBySideDoNotMeet(t *testing.T) {
	t.Parallel()
	one, two := New(t), New(t)
	a, b := one.Public("a", "7.0.0.10"), two.Public("a", "7.0.0.10")
	home := two.Home("h", PortRestricted).Host("h")
	inOne, inTwo := udp(t, a, ":4000"), udp(t, b, ":4000")
	send(t, udp(t, home, ":0"), netip.MustParseAddrPort("7.0.0.10:4000"), "two")
	receive(t, inTwo)
	if arrives(t, inOne, "two", false) {
		t.Error("a packet changed labs")
	}
}

func TestNothingLeavesTheLab(t *testing.T) {
	t.Parallel()
	l := New(t)
	h := l.Home("a", PortRestricted).Host("h")
	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	if c, err := h.Dial(ctx, "tcp", "9.9.9.9:53"); err == nil {
		c.Close()
		t.Error("somebody answers at 9.9.9.9")
	} else if !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
		t.Errorf("want silence, got %v", err)
	}
}

func TestCommandRunsOnItsHostAndEndsWithTheLab(t *testing.T) {
	before := goleak.IgnoreCurrent()
	var pid int
	t.Run("lab", func(t *testing.T) {
		l := New(t)
		h := l.Home("a", PortRestricted, Slow(time.Millisecond)).Host("h")
		mine, err := os.Readlink("/proc/self/ns/net")
		check(t, err)
		theirs, err := h.Command(t.Context(), "readlink", "/proc/self/ns/net").Output()
		check(t, err)
		if got := strings.TrimSpace(string(theirs)); got == mine || !strings.HasPrefix(got, "net:") {
			t.Errorf("the command ran in %s, this is %s", got, mine)
		}
		// A daemon: its parent is gone, no context holds it.
		out, err := h.Command(t.Context(), "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
		check(t, err)
		_, err = fmt.Sscan(string(out), &pid)
		check(t, err)
		if got := h.Processes(); !slices.Equal(got, []int{pid}) {
			t.Errorf("processes %v, want %d", got, pid)
		}
	})
	if pid != 0 && syscall.Kill(pid, 0) == nil {
		if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(stat), ") Z ") {
			t.Errorf("process %d outlived the lab: %s", pid, stat)
		}
	}
	leaks.None(t, before)
}

// The same lab without root: this test binary again, as nobody, which then makes its user namespace.
func TestLabNeedsNoRoot(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv(inUserNS) != "" {
		t.Skip("already without root")
	}
	dir, err := os.MkdirTemp("", "lab")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755)) // go test's own folder is closed to others
	bin := filepath.Join(dir, "lab.test")
	self, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	check(t, os.WriteFile(bin, self, 0o755))

	const nobody = 65534
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.run", "^(TestEachNAT|TestIPv6|TestTracking|TestCoreCounts|TestCutIsSilent)")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp") // a system may keep its users from TUN devices: no wires then, and skips
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "no user namespace either") {
		t.Skipf("this system lets users make no namespaces: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestEachNATMapsAndFiltersAsNamed/Sequential") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// reflectors are two public hosts with two UDP sockets each.
type reflectors struct {
	a, b           *Host
	a1, a2, b1, b2 *net.UDPConn
}

func newReflectors(t *testing.T, l *Lab) *reflectors {
	t.Helper()
	r := &reflectors{a: l.Public("reflector a", "7.0.0.10"), b: l.Public("reflector b", "7.0.0.11")}
	r.a1, r.a2 = udp(t, r.a, "7.0.0.10:1001"), udp(t, r.a, "7.0.0.10:1002")
	r.b1, r.b2 = udp(t, r.b, "7.0.0.11:1001"), udp(t, r.b, "7.0.0.11:1002")
	return r
}

func (r *reflectors) sockets() []*net.UDPConn { return []*net.UDPConn{r.a1, r.a2, r.b1, r.b2} }

// observe sends a packet from c and returns whom the reflector's socket saw.
func (r *reflectors) observe(t *testing.T, c, socket *net.UDPConn) netip.AddrPort {
	t.Helper()
	send(t, c, addrPort(socket), "probe")
	_, from := receive(t, socket)
	return from
}

func (h *Home) hosted(t *testing.T) *Host { t.Helper(); return h.Host("another") }

func udp(t *testing.T, h *Host, addr string) *net.UDPConn {
	t.Helper()
	c, err := h.ListenUDP(addr)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func addrPort(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// addrPortOf is the endpoint of a socket on a public host 7.0.0.21.
func addrPortOf(_ *Lab, c *net.UDPConn) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("7.0.0.21"), addrPort(c).Port())
}

func send(t *testing.T, c *net.UDPConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Fatalf("send %q to %v: %v", text, to, err)
	}
}

func receive(t *testing.T, c *net.UDPConn) (text string, from netip.AddrPort) {
	t.Helper()
	text, from, err := read(c, limit)
	check(t, err)
	return text, from
}

// hear returns what c receives before the last text, and a little after it.
func hear(t *testing.T, c *net.UDPConn, last string) (heard []string) {
	t.Helper()
	for wait := limit; ; {
		text, _, err := read(c, wait)
		switch {
		case err != nil && wait == quiet:
			return heard
		case err != nil:
			t.Fatalf("never heard %q: %v", last, err)
		case text == last:
			wait = quiet
		default:
			heard = append(heard, text)
		}
	}
}

// arrives says whether c receives the text: what is wanted may be late on a busy machine, what is not has until it is quiet.
func arrives(t *testing.T, c *net.UDPConn, text string, want bool) bool {
	t.Helper()
	wait := quiet
	if want {
		wait = limit
	}
	for {
		got, _, err := read(c, wait)
		if err != nil || got == text {
			return err == nil
		}
	}
}

func read(c *net.UDPConn, wait time.Duration) (string, netip.AddrPort, error) {
	buf := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(wait))
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
			continue
		}
		return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}
}

func tcpWorks(t *testing.T, from, to *Host) {
	t.Helper()
	transfer(t, from, to, 1000)
}

// transfer sends bytes over TCP and waits for the receiver's count.
func transfer(t *testing.T, from, to *Host, size int64) {
	t.Helper()
	ln, err := to.Listen("tcp4", ":0")
	check(t, err)
	defer ln.Close()
	failed := make(chan error, 1)
	go func() { // ends with the connection
		c, err := ln.Accept()
		if err != nil {
			failed <- err
			return
		}
		defer c.Close()
		n, err := io.Copy(io.Discard, c)
		if err == nil && n != size {
			err = fmt.Errorf("received %d bytes of %d", n, size)
		}
		_, _ = c.Write([]byte("k"))
		failed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	at := netip.AddrPortFrom(to.PublicAddr(), uint16(ln.Addr().(*net.TCPAddr).Port))
	c, err := from.Dial(ctx, "tcp", at.String())
	check(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	_, err = c.Write(make([]byte, size))
	check(t, err)
	check(t, c.(*net.TCPConn).CloseWrite())
	_, err = io.ReadFull(c, make([]byte, 1))
	check(t, err)
	check(t, <-failed)
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("in %v never: %s", limit, what)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
