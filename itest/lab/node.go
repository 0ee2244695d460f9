//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// node is one network namespace and the thread that lives in it.
//
// Namespaces have no name in the file system: a file descriptor and the thread hold them, so the kernel removes
// all of a lab with the test process, however that ends. To look into one while a test runs, see Lab.Map.
type node struct {
	name string
	ns   netns.NsHandle
	nl   *netlink.Handle
	jobs chan func()   // run on the node's thread, one after the other
	over chan struct{} // closed when that thread has ended

	walls walls
}

func newNode(name string) (*node, error) {
	n := &node{name: name, ns: netns.None(), jobs: make(chan func()), over: make(chan struct{})}
	made := make(chan error)
	go n.live(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	if err := n.setUp(); err != nil {
		n.close()
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	return n, nil
}

// live makes the namespace and does the node's jobs inside it until close.
func (n *node) live(made chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	defer close(n.over)
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		n.ns, err = netns.GetFromPath("/proc/thread-self/ns/net")
	}
	made <- err
	if err != nil {
		return
	}
	for job := range n.jobs {
		job()
	}
}

func (n *node) setUp() (err error) {
	if n.nl, err = netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	// Before there is any interface, so that "default" is inherited by each.
	for _, s := range []struct {
		key, value string
		optional   bool
	}{
		{key: "ipv4/conf/all/rp_filter", value: "0"},
		{key: "ipv4/conf/default/rp_filter", value: "0"},
		{key: "ipv4/conf/all/send_redirects", value: "0"}, // a hairpin goes out where it came in
		{key: "ipv4/conf/default/send_redirects", value: "0"},
		{key: "ipv6/conf/all/accept_dad", value: "0"}, // addresses usable at once
		{key: "ipv6/conf/default/accept_dad", value: "0"},
		{key: "ipv6/conf/all/dad_transmits", value: "0"},
		{key: "ipv6/conf/default/dad_transmits", value: "0"},
		{key: "ipv6/conf/default/accept_ra", value: "0"},
		// Where the kernel has br_netfilter built in, traffic within one LAN would pass the router's NAT rules.
		{key: "bridge/bridge-nf-call-iptables", value: "0", optional: true},
		{key: "bridge/bridge-nf-call-ip6tables", value: "0", optional: true},
	} {
		if err := n.sysctl(s.key, s.value); err != nil && !s.optional {
			return err
		}
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return n.nl.LinkSetUp(lo)
}

// do runs f on the node's thread, that is inside the namespace. What f starts as a child process dies with the node.
func (n *node) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case n.jobs <- func() { result <- f() }:
		return <-result
	case <-n.over:
		return errors.New("lab: " + n.name + " is gone")
	}
}

// visit runs f in the caller's goroutine with its thread moved into the namespace.
func (n *node) visit(f func()) {
	runtime.LockOSThread()
	home, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		panic(fmt.Sprintf("lab: own namespace: %v", err))
	}
	defer home.Close()
	if err := netns.Set(n.ns); err != nil {
		panic(fmt.Sprintf("lab: enter %s: %v", n.name, err))
	}
	defer func() {
		if netns.Set(home) == nil {
			runtime.UnlockOSThread() // else the thread stays locked and ends with its goroutine
		}
	}()
	f()
}

// sysctl writes /proc/sys/net/key, which shows the namespace of the thread that opens it.
func (n *node) sysctl(key, value string) error {
	return n.do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	})
}

// router makes the node forward packets.
func (n *node) router() error {
	return errors.Join(n.sysctl("ipv4/ip_forward", "1"), n.sysctl("ipv6/conf/all/forwarding", "1"))
}

// up brings a link up, gives it addresses, MTU (0: the usual) and routes.
func (n *node) up(link string, mtu int, addrs []netip.Prefix, routes ...route) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", link, n.name, err)
	}
	if mtu != 0 {
		if err := n.nl.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("mtu %d of %s on %s: %w", mtu, link, n.name, err)
		}
	}
	if err := n.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s up on %s: %w", link, n.name, err)
	}
	for _, a := range addrs {
		if err := n.nl.AddrReplace(l, address(a)); err != nil {
			return fmt.Errorf("address %v on %s of %s: %w", a, link, n.name, err)
		}
	}
	for _, r := range routes {
		if err := n.route(l, r); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until a link and its addresses are in use. Two things happen in the kernel's own time: it learns of a
// carrier, and until then drops what is sent, and it makes an IPv6 address its own, and until then drops what comes.
// Lost is usually the question for a neighbour or its answer, which costs a second.
func (n *node) ready(link string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := n.nl.LinkByName(link)
		if err != nil {
			return fmt.Errorf("%s on %s: %w", link, n.name, err)
		}
		state := l.Attrs().OperState
		if (state == netlink.OperUp || state == netlink.OperUnknown) && n.owns6(l) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s on %s does not come up: %v", link, n.name, state)
		}
	}
}

// owns6 says whether each IPv6 address of a link is in the table of what is delivered locally.
func (n *node) owns6(l netlink.Link) bool {
	addrs, err := n.nl.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		return false // a dump that was interrupted; again
	}
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: l.Attrs().Index}
	routes, err := n.nl.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.IP) }) {
			return false
		}
	}
	return true
}

// route is a way to a prefix: through a next hop, or to neighbours on the link itself.
type route struct {
	to, via string // prefix, address or ""
}

func (n *node) route(l netlink.Link, r route) error {
	to := netip.MustParsePrefix(r.to)
	kr := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to)}
	if r.via == "" {
		kr.Scope = netlink.SCOPE_LINK
	} else {
		kr.Gw = netip.MustParseAddr(r.via).AsSlice()
		kr.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := n.nl.RouteReplace(&kr); err != nil {
		return fmt.Errorf("route to %v via %q %s on %s: %w", r.to, r.via, l.Attrs().Name, n.name, err)
	}
	return nil
}

// pids are the processes inside the namespace, this one excepted.
func (n *node) pids() []int {
	var own, other unix.Stat_t
	if unix.Fstat(int(n.ns), &own) != nil {
		return nil
	}
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &other) == nil && own.Ino == other.Ino && own.Dev == other.Dev {
			pids = append(pids, pid)
		}
	}
	return pids
}

// close ends what still runs inside and lets the namespace go.
func (n *node) close() {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		pids := n.pids()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond) // no event tells of the end of somebody else's child
	}
	close(n.jobs)
	<-n.over
	if n.nl != nil {
		n.nl.Close()
	}
	n.ns.Close()
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	a.IPNet.IP = p.Addr().AsSlice()
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
