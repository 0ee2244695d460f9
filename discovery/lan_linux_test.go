package discovery

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/vishvananda/netlink"
)

// inNamespace says that this process is the one with a network of its own.
const inNamespace = "FWD_TEST_IN_NAMESPACE"

// alone runs the calling test once more, in a process with an empty network
// namespace, and says whether we are that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.ProcessState == nil:
		t.Skipf("no network namespace here: %v", err)
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the namespace:\n%s", out)
	}
	return false
}

// lanInterface turns the namespace's loopback interface into a LAN of one
// machine: multicast, and an address that is no loopback address.
func lanInterface(t *testing.T, addr string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	ip, err := netlink.ParseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMulticastOn(lo); err != nil {
		t.Skipf("no multicast on the loopback interface here: %v", err)
	}
	if err := netlink.AddrAdd(lo, ip); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	_, multicast, _ := net.ParseCIDR("224.0.0.0/4")
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: multicast}); err != nil {
		t.Fatal(err)
	}
}

// containers gives the namespace what Docker makes on a host. It leads nowhere.
func containers(t *testing.T) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	ip, err := netlink.ParseAddr("172.17.0.1/16")
	if err == nil {
		err = netlink.LinkAdd(bridge)
	}
	if err != nil {
		t.Skipf("no bridges here: %v", err)
	}
	if err := netlink.AddrAdd(bridge, ip); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		t.Fatal(err)
	}
}

func TestMembersOnOneLANFindEachOtherAndStrangersDoNot(t *testing.T) {
	if !alone(t) {
		return
	}
	lanInterface(t, "192.168.77.1/24")
	const listen = "/ip4/0.0.0.0/tcp/0"
	on := func(h host.Host, network string) *Finder {
		f := newFinder(t, h, "/ip4/192.0.2.1/tcp/1", nil, func(c *Config) {
			c.LAN = true
			c.Network = func() string { return network }
		})
		serve(t, f)
		return f
	}
	nas, laptop, stranger := newHost(t, listen), newHost(t, listen), newHost(t, listen)
	on(nas, "home")
	f, other := on(laptop, "home"), on(stranger, "elsewhere")
	eventually(t, "found on the LAN", func() bool { return len(find(t, f, nas.ID())) > 0 })
	for a := range find(t, f, nas.ID()) {
		if !strings.HasPrefix(a, "/ip4/192.168.77.1/") {
			t.Errorf("found at %s", a)
		}
	}
	if got := find(t, other, nas.ID()); len(got) != 0 {
		t.Errorf("a stranger's network found %v", got)
	}
	if got := find(t, f, stranger.ID()); len(got) != 0 {
		t.Errorf("a stranger was found at %v", got)
	}
}

func TestMembersOnOneLANAreNotToldOfContainers(t *testing.T) {
	if !alone(t) {
		return
	}
	lanInterface(t, "192.168.79.1/24")
	containers(t)
	const listen = "/ip4/0.0.0.0/tcp/0"
	nas, laptop := newHost(t, listen), newHost(t, listen)
	var f *Finder
	for _, h := range []host.Host{nas, laptop} {
		f = newFinder(t, h, "/ip4/192.0.2.1/tcp/1", nil, func(c *Config) { c.LAN = true })
		serve(t, f)
	}
	eventually(t, "found on the LAN", func() bool { return len(find(t, f, nas.ID())) > 0 })
	for a := range find(t, f, nas.ID()) {
		if !strings.HasPrefix(a, "/ip4/192.168.79.1/") {
			t.Errorf("told of %s", a)
		}
	}
}

func TestLANFollowsAChangeOfAddress(t *testing.T) {
	if !alone(t) {
		return
	}
	const listen = "/ip4/0.0.0.0/tcp/0"
	nas, laptop := newHost(t, listen), newHost(t, listen)
	lan := func(h host.Host) *Finder {
		f := newFinder(t, h, "/ip4/192.0.2.1/tcp/1", nil, func(c *Config) { c.LAN = true })
		serve(t, f)
		return f
	}
	a, b := lan(nas), lan(laptop) // before there is any network
	lanInterface(t, "192.168.78.1/24")
	a.Announce()
	b.Announce()
	eventually(t, "found after the change", func() bool { return len(find(t, b, nas.ID())) > 0 })
}
