package node

import (
	"net/netip"
	"strings"
	"testing"
)

// around reads surroundings from lines: "eth0 192.0.2.7/24", "docker0 172.17.0.1/16 unplugged", "via eth0 192.0.2.1",
// "relay 203.0.113.1 from 192.0.2.7".
func around(lines ...string) surroundings {
	s := surroundings{gateways: make(map[string]bool), ifaces: make(map[ifaceAddr]bool), toRelays: make(map[netip.Addr]netip.Addr)}
	for _, line := range lines {
		switch f := strings.Fields(line); f[0] {
		case "via":
			s.gateways[f[1]+" "+f[2]] = true
		case "relay":
			from := netip.Addr{}
			if len(f) > 2 {
				from = netip.MustParseAddr(f[3])
			}
			s.toRelays[netip.MustParseAddr(f[1])] = from
		default:
			s.ifaces[ifaceAddr{1, f[0], netip.MustParsePrefix(f[1]), len(f) == 2}] = true
		}
	}
	return s
}

// A container's start or stop, or a virtual machine's, leaves alone what goes by other ways.
func TestOnlyInterfacesByWhichSomethingGoesAreAChangeOfNetwork(t *testing.T) {
	home := []string{"eth0 192.0.2.7/24", "via eth0 192.0.2.1", "relay 203.0.113.1 from 192.0.2.7"}
	and := func(more ...string) surroundings { return around(append(more, home...)...) }
	for name, c := range map[string]struct {
		before, after surroundings
		leaving       string
		want          change
	}{
		"nothing":                      {before: and(), after: and(), want: nothing},
		"a container's bridge comes":   {before: and(), after: and("docker0 172.17.0.1/16"), want: besides},
		"and goes":                     {before: and("docker0 172.17.0.1/16"), after: and(), want: besides},
		"or is plugged in":             {before: and("docker0 172.17.0.1/16 unplugged"), after: and("docker0 172.17.0.1/16"), want: besides},
		"which somebody is reached by": {before: and("docker0 172.17.0.1/16"), after: and(), leaving: "172.17.0.1", want: wayGone},
		"another address here":         {before: and(), after: and("eth0 2001:db8::7/64"), want: wayCame},
		"that goes":                    {before: and("eth0 2001:db8::7/64"), after: and(), want: wayGone},
		"the cable is pulled": {before: and(), want: wayGone,
			after: around("eth0 192.0.2.7/24 unplugged", "via eth0 192.0.2.1", "relay 203.0.113.1 from 192.0.2.7")},
		"another router, the same address": {before: and(), want: wayGone,
			after: around("eth0 192.0.2.7/24", "via eth0 192.0.2.254", "relay 203.0.113.1 from 192.0.2.7")},
		"a tunnel's address, not used yet": {before: and(), after: and("wg0 10.9.0.2/32"), want: besides},
		"then it leads to the relay": {before: and("wg0 10.9.0.2/32"), want: wayCame,
			after: around("wg0 10.9.0.2/32", "eth0 192.0.2.7/24", "via eth0 192.0.2.1", "relay 203.0.113.1 from 10.9.0.2")},
		"no way to the relay any more": {before: and(), want: wayGone,
			after: around("eth0 192.0.2.7/24", "via eth0 192.0.2.1", "relay 203.0.113.1")},
		"another relay":            {before: and(), after: and("relay 203.0.113.2 from 192.0.2.7"), want: nothing},
		"a network without router": {before: around(), after: around("eth0 192.168.7.2/24"), want: wayCame},
	} {
		leaving := make(map[netip.Addr]bool)
		if c.leaving != "" {
			leaving[netip.MustParseAddr(c.leaving)] = true
		}
		if got := c.before.compare(c.after, leaving); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestDialsUnderWayEndOnlyWithWhatTheyMayRestOn(t *testing.T) {
	m := newMesh(t)
	a := m.join(Config{})
	dial := a.network.ctx()
	a.networkChanged(a.surroundings(), false)
	if dial.Err() != nil {
		t.Error("ended although nothing was lost")
	}
	a.networkChanged(a.surroundings(), true)
	if dial.Err() == nil {
		t.Error("a dial of the network that was goes on")
	}
}
