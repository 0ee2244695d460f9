//go:build linux

// Package lab builds internets for tests: hosts, home routers with every kind of NAT, carriers, clouds, slow and
// broken wires, out of network namespaces of this machine's kernel. It needs Linux and no other program; root, or
// a system that lets users make user namespaces (see Main).
//
//	l := lab.New(t)
//	relay := l.Public("relay", "7.0.0.10")
//	nas := l.Home("a", lab.PortRestricted).Host("nas")
//	phone := l.Home("b", lab.Symmetric, lab.Slow(20*time.Millisecond)).Host("phone")
//	out, err := phone.Command(ctx, "fwd", "status").Output()
//
// What happens to one packet of nas for phone: it crosses the LAN's bridge, its router translates and filters it
// (nat.go), the home's access cable carries it (cable.go: a veth pair, or with Slow and the like a wire of two TUN
// devices with a queue of ours between, wire.go), the core routes and counts it (count.go), and so on down the
// other side. Carriers and home routers are routers: each takes one from the TTL. The core takes five.
//
// The core knows only the addresses given out. Everything else, the machine's own network included, is out of
// reach: packets to it vanish without an answer. Addresses are from ranges that libp2p takes for public (7.0.0.0/8,
// 2a00::/16), not from the documentation ranges, which it refuses to dial.
//
// What it does not do: DNS, IPv6 translation. Times are real, so a test waits for
// conditions, not for time.
package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lab is one internet. Its methods fail the test when the kernel refuses something, so they belong in the
// test's own goroutine. Labs are independent of each other; tests that use them may run in parallel.
type Lab struct {
	t       testing.TB
	core    *node
	routers byte // that the core is, for the TTL

	mu     sync.Mutex
	nodes  []*node
	wires  []*wire
	cables int // numbers the core's links
	sites  int // numbers public hosts, homes and carriers: 7.N.0.1, 192.168.N.0/24, 2a00:N::/32
	severs int
}

// coreRouters is what the core takes from a packet's TTL: as on the internet, a packet that is to die a few hops from
// home does not reach a stranger's router.
const coreRouters = 5

// Near makes the core one router: all are customers of one provider's exchange.
func (l *Lab) Near() {
	l.routers = 1
	l.ForgetFlows()
}

// gateway is the core's address on each of its links.
var gateway = netip.MustParseAddr("7.0.0.1")

// New builds an empty internet. It is removed when the test ends, with everything that still runs in it. Where no
// network namespaces can be made the test is skipped, or with FWD_LAB_REQUIRED set fails.
func New(t testing.TB) *Lab {
	t.Helper()
	if err := mayUnshare(); err != nil {
		unavailable(t, fmt.Errorf("network namespace: %w (run as root, or allow user namespaces)", err))
	}
	l := &Lab{t: t, routers: coreRouters}
	t.Cleanup(l.close)
	l.core = l.node("core")
	if err := l.core.countFlows(l.routers); err != nil {
		if notSupported(err) {
			unavailable(t, err)
		}
		l.must(err, "count flows")
	}
	l.must(l.core.router(), "core")
	// What nobody has been given leads nowhere, in silence.
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		l.must(l.core.nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(all)), Type: unix.RTN_BLACKHOLE}), "black hole")
	}
	return l
}

func unavailable(t testing.TB, why error) {
	t.Helper()
	if os.Getenv(required) != "" {
		t.Fatalf("lab: not possible here: %v", why)
	}
	t.Skipf("lab: not possible here: %v", why)
}

// notSupported tells a kernel or a container that lacks a part of the lab from a mistake of ours.
func notSupported(err error) bool {
	for _, e := range []error{fs.ErrPermission, fs.ErrNotExist, syscall.EOPNOTSUPP, syscall.EPROTONOSUPPORT, syscall.EAFNOSUPPORT, syscall.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (l *Lab) must(err error, what string) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("lab: %s: %v", what, err)
	}
}

func (l *Lab) node(name string) *node {
	l.t.Helper()
	n, err := newNode(name)
	l.must(err, "new machine")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	return n
}

func (l *Lab) site() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sites++
	return l.sites
}

// close removes the internet. Processes inside are killed, the kernel takes down links, rules and routes.
func (l *Lab) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Failed() {
		for _, n := range l.nodes {
			for _, pid := range n.pids() {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				l.t.Logf("lab: still running on %s: pid %d %s", n.name, pid, strings.ReplaceAll(string(cmdline), "\x00", " "))
			}
		}
	}
	for _, n := range slices.Backward(l.nodes) {
		n.close()
	}
	for _, w := range l.wires {
		w.close()
	}
}

// Map says how to look into each namespace while the test runs, one line each:
// `nsenter --net=/proc/PID/fd/N ip addr`.
func (l *Lab) Map() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, n := range l.nodes {
		fmt.Fprintf(&b, "%-12s nsenter --net=/proc/%d/fd/%d\n", n.name, os.Getpid(), int(n.ns))
	}
	return b.String()
}

// Public adds a host with a public address of its own, attached to the core.
func (l *Lab) Public(name, addr string, opts ...Option) *Host {
	l.t.Helper()
	o := l.options(opts)
	h := &Host{lab: l, node: l.node(name), name: name, addr: l.addr(addr)}
	end := site{node: h.node, link: "eth0", addr: h.addr}
	if o.ipv6 {
		end.prefix6 = prefix6(l.site(), 0)
		h.addr6 = wan6(end.prefix6)
	}
	h.cable = l.attach(l.uplink(), end, o)
	h.protect(o)
	return h
}

// Cloud adds a host as clouds have them: a private address on its interface, and all of a public address
// translated to it and back (1:1 NAT). Addr is the private address, Public the other.
func (l *Lab) Cloud(name, public string, opts ...Option) *Host {
	l.t.Helper()
	o := l.options(opts)
	edge := l.home(name+"-edge", oneToOne, append(slices.Clone(opts), LAN(fmt.Sprintf("10.0.%d.0/24", l.site())), WAN(public)))
	h := edge.Host(name, func(h *options) { h.firewall = o.firewall })
	h.cable = edge.cable
	return h
}

// Sever drops all packets between two public addresses at the core, both ways, until mend is called.
func (l *Lab) Sever(a, b netip.Addr) (mend func()) {
	l.t.Helper()
	l.mu.Lock()
	l.severs++
	name := fmt.Sprintf("sever %d", l.severs)
	l.mu.Unlock()
	l.must(l.core.wall(name,
		wall{forwarded, slices.Concat(from(a), to(b))},
		wall{forwarded, slices.Concat(from(b), to(a))},
	), name)
	return func() {
		l.t.Helper()
		l.must(l.core.wall(name), "mend")
	}
}

// SeverOneWay drops all packets from one public address to another at the core, until mend is called.
func (l *Lab) SeverOneWay(a, b netip.Addr) (mend func()) {
	l.t.Helper()
	l.mu.Lock()
	l.severs++
	name := fmt.Sprintf("sever %d", l.severs)
	l.mu.Unlock()
	l.must(l.core.wall(name, wall{forwarded, slices.Concat(from(a), to(b))}), name)
	return func() {
		l.t.Helper()
		l.must(l.core.wall(name), "mend")
	}
}

func (l *Lab) addr(s string) netip.Addr {
	l.t.Helper()
	a, err := netip.ParseAddr(s)
	l.must(err, "address")
	return a
}
