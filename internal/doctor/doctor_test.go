package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fwd/internal/punch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddr("127.0.0.1")

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// healthy is a machine with one relay, at which nothing is wrong. Its interfaces are made up.
func healthy() Machine {
	return Machine{
		Network: "home",
		Relays: []Relay{{Name: "vps", Addrs: []Addr{
			{Transport: "udp", Host: "vps.example.org", Port: 4001}, {Transport: "tcp", Host: "vps.example.org", Port: 4001},
		}}},
		Probe: func(_ context.Context, _ Relay, a Addr) (Seen, error) {
			return Seen{RTT: 40 * time.Millisecond, Observed: netip.MustParseAddrPort("7.0.0.9:20000"), Clock: noon}, nil
		},
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("7.0.0.10")}, nil
		},
		Listening: []Addr{{Transport: "udp", Port: 20000}, {Transport: "tcp", Port: 20000}},
		Now:       noon, Signed: noon.Add(-time.Hour),
		ReadFile: func(string) ([]byte, error) { return nil, fs.ErrNotExist },
		Exists:   func(string) bool { return false },
	}
}

// errSilent is what comes of a packet that nobody answers.
var errSilent = errors.New("i/o timeout")

// fails has nothing answer by a transport.
func fails(m *Machine, transport string) {
	good := m.Probe
	m.Probe = func(ctx context.Context, r Relay, a Addr) (Seen, error) {
		if a.Transport == transport {
			return Seen{}, errSilent
		}
		return good(ctx, r, a)
	}
}

// webServer is one on the relay's host; elsewhere nobody answers.
func webServer(status int, location string) func(context.Context, string) (int, string, error) {
	return func(_ context.Context, host string) (int, string, error) {
		if host != "vps.example.org" {
			return 0, "", errSilent
		}
		return status, location, nil
	}
}

// seenBy is what comes of connecting to a relay with that reflector.
func seenBy(r reflector) func(context.Context, Relay, Addr) (Seen, error) {
	return func(context.Context, Relay, Addr) (Seen, error) { return Seen{Reflector: r.at, Token: r.token}, nil }
}

// observedAt is what comes of connecting to a relay that sees us there.
func observedAt(at string) func(context.Context, Relay, Addr) (Seen, error) {
	return func(context.Context, Relay, Addr) (Seen, error) {
		return Seen{Observed: netip.MustParseAddrPort(at), Clock: noon}, nil
	}
}

// addRelay adds a second relay, as good as the first.
func addRelay(m *Machine) {
	m.Relays = append(m.Relays, Relay{Name: "second", Addrs: []Addr{
		{Transport: "udp", Host: "second.example.org", Port: 4001}, {Transport: "tcp", Host: "second.example.org", Port: 4001},
	}})
}

func find(t *testing.T, r Report, id string) Check {
	t.Helper()
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.ID == id })
	if i < 0 {
		return Check{}
	}
	return r.Checks[i]
}

func TestEachTroubleIsNamedWithItsMend(t *testing.T) {
	walled := reflects(t, false)
	for _, c := range []struct {
		name       string
		change     func(*Machine)
		id         string
		level      Level
		what, mend string
	}{
		{"revoked", func(m *Machine) { m.Revoked = true }, "network", Wrong, "off the roster", "fwd join"},
		{"no network", func(m *Machine) { m.Network, m.Relays = "", nil }, "network", Wrong, "no network", "fwd join"},
		{"no relay", func(m *Machine) { m.Relays = nil }, "network", Hint, "no relay", "fwd relay"},
		{"no relay but itself", func(m *Machine) { m.Relays, m.Relay = nil, true }, "network", OK, "the only relay", ""},
		{"relay down", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
		}, "relay-udp", Wrong, "no answer at vps.example.org:4001", "is fwd relay running on vps"},
		{"relay's TCP closed", func(m *Machine) { fails(m, "tcp") }, "relay-tcp", Wrong, "no answer", "open TCP port 4001"},
		{"UDP blocked", func(m *Machine) { addRelay(m); fails(m, "udp") }, "nat", Wrong, "no UDP leaves", "let UDP out"},
		{"UDP blocked, at a relay", func(m *Machine) { addRelay(m); fails(m, "udp") }, "relay-udp", Wrong, "no answer", "see NAT"},
		{"UDP blocked here or at the only relay", func(m *Machine) { fails(m, "udp") }, "nat", Wrong, "no UDP gets from here to vps", "firewall of vps and its provider's (see above); where it is open, let UDP out"},
		{"UDP blocked at the only relay or here", func(m *Machine) { fails(m, "udp") }, "relay-udp", Wrong, "no answer", "open UDP port 4001 in the firewall of vps and its provider's, or towards it in this network's"},
		{"UDP closed at one of two relays", func(m *Machine) {
			addRelay(m)
			good := m.Probe
			m.Probe = func(ctx context.Context, r Relay, a Addr) (Seen, error) {
				if r.Name == "vps" && a.Transport == "udp" {
					return Seen{}, errSilent
				}
				return good(ctx, r, a)
			}
		}, "relay-udp", Wrong, "no answer", "open UDP port 4001 in the firewall of vps and its provider's"},
		{"a relay without UDP", func(m *Machine) {
			m.Relays[0].Addrs = []Addr{{Transport: "wss", Host: "vps.example.org", Port: 443}}
		}, "nat", Hint, "seen at 7.0.0.9", "a relay that answers plain UDP"},
		{"name gone", func(m *Machine) {
			m.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
		}, "dns", Wrong, "no address", "getent hosts vps.example.org"},
		{"clock behind the owner's word", func(m *Machine) { m.Now = noon.Add(-72 * time.Hour) }, "clock", Wrong, "3 days slow", "set it"},
		{"clock ahead", func(m *Machine) { m.Now = noon.Add(30 * time.Minute) }, "clock", Wrong, "30 min fast", "set it"},
		{"TCP port taken", func(m *Machine) { m.Listening = m.Listening[:1] }, "port", Wrong, "TCP nothing", "another program"},
		{"a relay that is to have one transport", func(m *Machine) {
			m.Relay, m.Listening = true, []Addr{{Transport: "wss", Port: 443}}
		}, "port", OK, "listens on WebSocket 443", ""},
		{"a firewall in front of a public address", func(m *Machine) { m.Probe = seenBy(walled) }, "firewall", Hint, "do not come in", "let port 20000 in"},
		{"a firewall that is open for fwd alone", func(m *Machine) {
			m.Probe, m.Reached = seenBy(walled), []netip.AddrPort{netip.AddrPortFrom(loopback, 20000)}
		}, "firewall", "", "", ""},
		{"a firewall that is open for fwd alone is no trouble", func(m *Machine) {
			m.Probe, m.Reached = seenBy(walled), []netip.AddrPort{netip.AddrPortFrom(loopback, 20000)}
		}, "nat", OK, "a firewall that lets in what comes to fwd", ""},
		{"small buffers", func(m *Machine) {
			m.ReadFile = func(string) ([]byte, error) { return []byte("212992\n"), nil }
		}, "udp-buffers", Hint, "0.2 MB", "net.core.rmem_max=7500000"},
		{"no BBR", func(m *Machine) {
			m.ReadFile = func(string) ([]byte, error) { return []byte("reno cubic\n"), nil }
		}, "bbr", Hint, "not loaded", "modprobe tcp_bbr"},
		{"mapping on a router behind a router", func(m *Machine) {
			m.Mapped = []netip.AddrPort{netip.MustParseAddrPort("192.168.178.20:20000")}
		}, "double-nat", Hint, "192.168.178.20, is private", "public address"},
		{"carrier's NAT", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "wwan0", Addrs: []netip.Addr{netip.MustParseAddr("100.70.1.2")}}}
		}, "double-nat", Hint, "carrier-grade", "IPv6"},
		{"mapping that is seen elsewhere", func(m *Machine) {
			m.Mapped = []netip.AddrPort{netip.MustParseAddrPort("7.0.0.99:20000")}
		}, "double-nat", Hint, "the relays see 7.0.0.9", "bridge"},
		{"mapping that a relay on the LAN cannot see", func(m *Machine) {
			m.Mapped = []netip.AddrPort{netip.MustParseAddrPort("7.0.0.99:20000")}
			m.Probe = observedAt("192.168.1.7:20000")
		}, "double-nat", "", "", ""},
		{"a relay on the LAN alone", func(m *Machine) { m.Probe = observedAt("192.168.1.7:20000") }, "nat", Hint, "seen at 192.168.1.7, a private address", "a relay on the internet"},
		{"no IPv6", func(*Machine) {}, "ipv6", Hint, "none here", "provider"},
		{"a login page in the relay's place", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = func(context.Context, string) (int, string, error) { return 302, "http://login.cafe.example/", nil }
		}, "portal", Wrong, "leads to login.cafe.example", "open http://vps.example.org/ in a browser"},
		{"the relay's own web server where its fwd is down", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = webServer(301, "https://vps.example.org/")
		}, "portal", "", "", ""},
		{"a web server beside the relay that leads elsewhere", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = webServer(301, "https://example.org/")
		}, "portal", Hint, "vps.example.org leads to example.org: its own, or this network", "log in where it asks"},
		{"a login page in the place of whatever is no relay", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = func(_ context.Context, host string) (int, string, error) {
				if host == "vps.example.org" {
					return 0, "", errSilent
				}
				return 200, "", nil
			}
		}, "portal", Wrong, "in the place of 192.0.2.1", "open http://192.0.2.1/"},
		{"a network that says outright that it wants a login", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = webServer(511, "")
		}, "portal", Wrong, "it says so, in the place of vps.example.org", "open http://vps.example.org/"},
		{"a proxy that sees to all web traffic", func(m *Machine) {
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
			m.Fetch = func(context.Context, string) (int, string, error) { return 503, "", nil }
		}, "portal", "", "", ""},
		{"a login page once it is passed", func(m *Machine) {
			m.Fetch = func(context.Context, string) (int, string, error) { return 511, "", nil }
		}, "portal", "", "", ""},
		{"translated IPv6", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("fd00::1")}}}
			m.Probe = observedAt("[2a00::9]:20000")
		}, "ipv6", Hint, "works, but translated: the relays see 2a00::9", "turn off NAT"},
		{"IPv6 by name, as a relay sees it", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("2a00::8"), netip.MustParseAddr("2a00::9")}}}
			m.Probe = observedAt("[2a00::9]:20000")
		}, "ipv6", OK, "works, as 2a00::9", ""},
		{"IPv6 that nobody tried", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("2a00::1")}}}
		}, "ipv6", OK, "2a00::1", ""},
		{"another tunnel", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "wg0", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}}}
		}, "vpn", OK, "not reached through it", ""},
		{"a tunnel to a relay by name", func(m *Machine) {
			m.Lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{loopback}, nil }
			m.Interfaces = []Interface{{Name: "tun0", Addrs: []netip.Addr{loopback}}}
		}, "vpn", Hint, "all traffic goes through it", "split tunnel"},
		{"IPv6 that leads to no relay by name", func(m *Machine) {
			m.Interfaces = []Interface{{Name: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("2a00::1")}}}
			m.Lookup = func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("2a00::10"), netip.MustParseAddr("7.0.0.10")}, nil
			}
			good := m.Probe
			m.Probe = func(ctx context.Context, r Relay, a Addr) (Seen, error) {
				if a.IP.Is6() {
					return Seen{}, errSilent
				}
				return good(ctx, r, a)
			}
		}, "ipv6", Hint, "no relay is reached by IPv6", "check IPv6"},
		{"relays that are reached by IPv6 alone", func(m *Machine) {
			m.Probe = observedAt("[2a00::9]:20000")
		}, "nat", Hint, "no relay sees this machine by IPv4", ""},
		{"useless proxy", func(m *Machine) {
			m.Proxy = "http://proxy:3128"
			m.Probe = func(context.Context, Relay, Addr) (Seen, error) { return Seen{}, errSilent }
		}, "proxy", Wrong, "neither directly nor", "--listen 443"},
		{"bad proxy", func(m *Machine) { m.NoProxy = "a proxy of kind \"socks5\" cannot be used" }, "proxy", Wrong, "socks5", "HTTPS_PROXY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := healthy()
			c.change(&m)
			r := Examine(t.Context(), m)
			got := find(t, r, c.id)
			if got.Level != c.level || !strings.Contains(got.What, c.what) || !strings.Contains(got.Mend, c.mend) {
				t.Errorf("got %+v\nwant %s: %q, mend %q", got, c.level, c.what, c.mend)
			}
			if r.OK == slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Level == Wrong }) {
				t.Errorf("ok is %v with %+v", r.OK, r.Checks)
			}
			for _, f := range r.Checks {
				if f.Level == Wrong && f.Mend == "" {
					t.Errorf("no mend for %+v", f)
				}
			}
		})
	}
}

func TestNothingIsWrongWithAHealthyMachine(t *testing.T) {
	if r := Examine(t.Context(), healthy()); !r.OK {
		t.Errorf("%+v", r.Checks)
	}
}

func TestNATIsNamedByWhatWasMeasured(t *testing.T) {
	for _, c := range []struct {
		mapping, filtering string
		fresh              []uint16
		want               string
	}{
		{"none", anybody, nil, Public},
		{"none", sameAddress, nil, Public},
		{"none", samePort, nil, Firewall},
		{"endpoint-independent", anybody, nil, FullCone},
		{"endpoint-independent", sameAddress, nil, AddressRestricted},
		{"endpoint-independent", samePort, nil, PortRestricted},
		{"endpoint-independent", "unknown", nil, Unknown},
		{"endpoint-dependent", samePort, []uint16{1025, 60000, 3, 41000, 9}, Symmetric},
		{"endpoint-dependent", samePort, []uint16{50001, 50400, 50033, 50222, 50009}, SymmetricBlock},
		{"endpoint-dependent", samePort, []uint16{42001, 42002, 42004, 42005, 42006}, Sequential},
		{"endpoint-dependent", samePort, nil, Symmetric},
		{"unknown", samePort, nil, Unknown},
	} {
		n := NAT{Mapping: c.mapping, Filtering: c.filtering, fresh: c.fresh}
		if n.name(); n.Kind != c.want {
			t.Errorf("%s, %s, ports %v: %s, want %s", c.mapping, c.filtering, c.fresh, n.Kind, c.want)
		}
	}
}

// The same thing has the same name in fwd doctor as in fwd status.
func TestFilteringIsInTheWordsOfStatus(t *testing.T) {
	if anybody != string(punch.Anybody) || sameAddress != string(punch.SameAddress) || samePort != string(punch.SamePort) {
		t.Errorf("%q, %q, %q", anybody, sameAddress, samePort)
	}
}

func TestLifetimeIsToldBetweenTwoSpans(t *testing.T) {
	for _, c := range []struct {
		from, to time.Duration
		level    Level
		what     string
	}{
		{0, 10 * time.Second, Wrong, "less than 10s"},
		{10 * time.Second, 20 * time.Second, Hint, "10s without traffic, less than 20s"},
		{30 * time.Second, 45 * time.Second, OK, "30s without traffic, less than 45s"},
		{5 * time.Minute, 0, OK, "5m0s and longer"},
	} {
		if got := judge(Check{}, c.from, c.to); got.Level != c.level || !strings.Contains(got.What, c.what) {
			t.Errorf("%v to %v: %+v", c.from, c.to, got)
		}
	}
}

// reflects is a reflector on loopback, as relays have one.
func reflects(t *testing.T, other bool) reflector {
	return reflectsAs(t, loopback, other, netip.Addr{})
}

// reflectsAs is one that sees whoever asks it at an address; zero: at its own.
func reflectsAs(t *testing.T, here netip.Addr, other bool, as netip.Addr) reflector {
	open := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: here.AsSlice()})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	main, second := open(), open()
	var wg sync.WaitGroup
	t.Cleanup(func() { main.Close(); second.Close(); wg.Wait() })
	wg.Go(func() {
		b := make([]byte, 2*requestSize)
		for {
			n, from, err := main.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n != requestSize || b[0] != requestKind {
				continue
			}
			ip := from.Addr().As16()
			if as.IsValid() {
				ip = as.As16()
			}
			answer := append([]byte{answerKind}, b[1:17]...)
			answer = binary.BigEndian.AppendUint16(append(answer, ip[:]...), from.Port())
			for i := range answer[17:] {
				answer[17+i] ^= b[1+i%16]
			}
			main.WriteToUDPAddrPort(answer, from)
			switch extra, port := b[33], binary.BigEndian.Uint16(b[34:]); {
			case extra == alsoOther && other:
				second.WriteToUDPAddrPort(answer, from)
			case extra == alsoPort:
				main.WriteToUDPAddrPort(answer, netip.AddrPortFrom(from.Addr(), port))
			}
		}
	})
	return reflector{main.LocalAddr().(*net.UDPAddr).AddrPort(), make([]byte, 16)}
}

// dualStack has the relay at two addresses behind its name, the resolver's first one by IPv6, where who dials the name
// gets to; by IPv4 it is r.
func dualStack(m *Machine, r netip.AddrPort, token []byte) {
	six := netip.MustParseAddr("2a00::10")
	m.Lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{six, r.Addr()}, nil }
	m.Probe = func(_ context.Context, _ Relay, a Addr) (Seen, error) {
		if a.IP == r.Addr() {
			return Seen{RTT: time.Millisecond, Reflector: r, Token: token}, nil
		}
		return Seen{Observed: netip.MustParseAddrPort("[2a00::9]:20000"), Reflector: netip.AddrPortFrom(six, r.Port()), Token: token}, nil
	}
}

func TestARelayByNameIsAskedAtEachOfItsAddresses(t *testing.T) {
	r := reflects(t, true)
	m := healthy()
	dualStack(&m, r.at, r.token)
	got := Examine(t.Context(), m)
	if got.NAT.Kind != Public || got.NAT.Public != loopback.String() {
		t.Errorf("by IPv4: %+v, %+v", got.NAT, find(t, got, "nat"))
	}
	if c := find(t, got, "relay-udp"); c.Level != OK || !strings.Contains(c.What, "vps.example.org:4001") {
		t.Errorf("%+v", c)
	}
	if c := find(t, got, "ipv6"); !strings.Contains(c.What, "2a00::9") {
		t.Errorf("%+v", c)
	}
}

func TestAClosedSecondPortIsToldOfARelayByName(t *testing.T) {
	m := healthy()
	dualStack(&m, closedPort(t), make([]byte, 16))
	got := find(t, Examine(t.Context(), m), "relay-second")
	if got.Level != Hint || !strings.Contains(got.Mend, "open ") {
		t.Errorf("%+v", got)
	}
}

// closedPort is a UDP port of loopback at which nobody listens.
func closedPort(t *testing.T) netip.AddrPort {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestLoopbackHasNoNAT(t *testing.T) {
	for _, open := range []bool{true, false} {
		r := reflects(t, open)
		m := healthy()
		m.Probe = seenBy(r)
		want := map[bool]string{true: Public, false: Firewall}[open]
		if got := Examine(t.Context(), m); got.NAT.Kind != want || got.NAT.Mapping != "none" {
			t.Errorf("%+v, want %s", got.NAT, want)
		}
	}
}

func TestARelayOnTheLANDoesNotJudgeTheNATIfAnotherCan(t *testing.T) {
	elsewhere := netip.MustParseAddr("127.0.0.2")
	if c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: elsewhere.AsSlice()}); err != nil {
		t.Skip("127.0.0.2 is no address of this machine:", err)
	} else {
		c.Close()
	}
	lan := reflectsAs(t, loopback, false, netip.MustParseAddr("192.168.1.7"))
	far := reflectsAs(t, elsewhere, false, netip.MustParseAddr("7.0.0.9"))
	m := healthy()
	addRelay(&m)
	m.Mapped = []netip.AddrPort{netip.MustParseAddrPort("7.0.0.9:20000")}
	m.Probe = func(ctx context.Context, r Relay, a Addr) (Seen, error) {
		return seenBy(map[string]reflector{"vps": lan, "second": far}[r.Name])(ctx, r, a)
	}
	got := Examine(t.Context(), m)
	if got.NAT.Public != "7.0.0.9" || got.NAT.Mapping != "unknown" {
		t.Errorf("%+v", got.NAT)
	}
	if c := find(t, got, "double-nat"); c.What != "" {
		t.Errorf("%+v", c)
	}
}

func TestARelayOnTheLANAloneShowsNoPublicAddress(t *testing.T) {
	n := NAT{Mapping: "none", Filtering: anybody}
	n.seenAt(netip.MustParseAddr("192.168.1.7"))
	n.seen = netip.AddrPortFrom(n.addr, 20000)
	n.name()
	if n.Kind != Unknown || n.Public != "" {
		t.Errorf("%+v", n)
	}
	e := examination{m: healthy()}
	if c := e.nat(n)[0]; c.Level != Hint || !strings.Contains(c.What, "none towards the relays, which see 192.168.1.7, a private address") || !strings.Contains(c.Mend, "a relay on the internet") {
		t.Errorf("%+v", c)
	}
	if c := e.lifetime(t.Context(), n); c.Level != Hint || !strings.Contains(c.What, "cannot be measured") {
		t.Errorf("%+v", c)
	}
}

func TestMappingSurvivesAPauseOnLoopback(t *testing.T) {
	if r := reflects(t, false); survives(t.Context(), r, 10*time.Millisecond) != alive {
		t.Error("a socket without NAT was not reached")
	}
}

func TestARelayThatDoesNotAnswerSaysNothingOfLifetimes(t *testing.T) {
	gone := reflector{closedPort(t), make([]byte, 16)}
	m := healthy()
	m.Lifetime = true
	m.Probe = seenBy(gone)
	if got := find(t, Examine(t.Context(), m), "lifetime"); got.Level != Hint || !strings.Contains(got.What, "cannot be measured") {
		t.Errorf("where no relay answers: %+v", got)
	}
	e := examination{m: m}
	if got := e.lifetime(t.Context(), NAT{seen: gone.at, asked: gone}); got.Level != Hint || !strings.Contains(got.What, "not measured") {
		t.Errorf("where the relay answers no more: %+v", got)
	}
}

// A router on loopback that speaks NAT-PMP and PCP.
func TestRouterIsAskedWhatItSpeaks(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: mappingPort})
	if err != nil {
		t.Skipf("port %d is taken: %v", mappingPort, err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	wg.Go(func() {
		b := make([]byte, 100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			switch {
			case err != nil:
				return
			case n == 2 && b[0] == 0:
				c.WriteToUDPAddrPort([]byte{0, 128, 0, 0, 0, 0, 0, 1, 100, 64, 0, 9}, from)
			case n == 24 && b[0] == 2:
				c.WriteToUDPAddrPort(append([]byte{2, 0x80, 0, 0}, make([]byte, 20)...), from)
			}
		}
	})
	m := healthy()
	m.Gateway = netip.MustParseAddr("127.0.0.1")
	r := Examine(t.Context(), m)
	if got := find(t, r, "port-mapping"); !strings.Contains(got.What, "NAT-PMP, PCP") {
		t.Errorf("%+v", got)
	}
	if got := find(t, r, "double-nat"); !strings.Contains(got.What, "carrier-grade") {
		t.Errorf("%+v", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(append([]byte{answerKind}, make([]byte, answerSize-1)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseAnswer(b); ok && (len(b) != answerSize || a.seen.Port() == 0) {
			t.Errorf("%x gave %v", b, a)
		}
	})
}
