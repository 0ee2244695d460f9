//go:build linux

package itest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// diagnosis is fwd doctor --json.
type diagnosis struct {
	OK  bool `json:"ok"`
	NAT struct {
		Kind      string `json:"kind"`
		Mapping   string `json:"mapping"`
		Filtering string `json:"filtering"`
	} `json:"nat"`
	Checks []finding `json:"checks"`
}

type finding struct {
	Check string `json:"check"`
	Of    string `json:"of"`
	Level string `json:"level"`
	What  string `json:"what"`
	Mend  string `json:"mend"`
}

func (d diagnosis) find(check, of string) (f finding) {
	for _, c := range d.Checks {
		if c.Check == check && (of == "" || c.Of == of) {
			return c
		}
	}
	return f
}

// examine runs fwd doctor; its exit status must be as its answer is.
func examine(t *testing.T, p *fwdtest.Peer, flags ...string) (d diagnosis) {
	t.Helper()
	r := p.Run(append([]string{"doctor", "--json"}, flags...)...)
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil {
		t.Fatalf("fwd doctor: exit %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	wrong := slices.ContainsFunc(d.Checks, func(f finding) bool { return f.Level == "wrong" })
	if d.OK == wrong || d.OK != (r.Code == 0) {
		t.Errorf("exit %d, ok %v, something wrong %v", r.Code, d.OK, wrong)
	}
	for _, f := range d.Checks {
		if f.Level == "wrong" && f.Mend == "" {
			t.Errorf("no mend for %+v", f)
		}
	}
	return d
}

// twoRelays is a network with the relays "one" (its owner) and "two".
func twoRelays(t *testing.T, l *lab.Lab) *fwdtest.Peer {
	t.Helper()
	one, two := fwdtest.New(t, l.Public("one", "7.0.0.10")), fwdtest.New(t, l.Public("two", "7.0.0.11"))
	one.Start("relay", "--as", "one").Wait("invite")
	two.Start("relay", "--as", "two", "--invite", one.Invite("--relay")).Wait("relay")
	return one
}

func TestDoctorNamesEachNATAndFirewall(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := twoRelays(t, l)
	for _, c := range []struct {
		name string
		kind lab.NAT
		opts []lab.Option
		want string
		ok   bool
	}{
		{"public", lab.Open, nil, "public", true},
		{"firewalled", lab.Open, []lab.Option{lab.Firewall()}, "firewall", true},
		{"fullcone", lab.FullCone, nil, "full-cone", true},
		{"addressrestricted", lab.AddressRestricted, nil, "address-restricted", true},
		{"portrestricted", lab.PortRestricted, nil, "port-restricted", true},
		{"inputaccept", lab.PortRestrictedInputAccept, nil, "port-restricted", true},
		{"portrange", lab.PortRange, nil, "port-restricted", true},
		{"symmetric", lab.Symmetric, nil, "symmetric", false},
		{"symmetricblock", lab.SymmetricBlock, nil, "symmetric-block", false},
		{"sequential", lab.Sequential, nil, "sequential", true},
		{"udpblocked", lab.UDPBlocked, nil, "udp-blocked", false},
	} {
		p := fwdtest.New(t, l.Home(c.name, c.kind).Host(c.name, c.opts...))
		p.Join(relay.Invite(), c.name)
		wrong := func(d diagnosis) string {
			if d.NAT.Kind != c.want || d.OK != c.ok {
				return fmt.Sprintf("%+v, ok %v; want %s, %v\n%+v", d.NAT, d.OK, c.want, c.ok, d.Checks)
			}
			for _, of := range []string{"one", "two"} {
				udp, tcp := d.find("relay-udp", of), d.find("relay-tcp", of)
				if udp.Level == "ok" == (c.kind == lab.UDPBlocked) || tcp.Level != "ok" {
					return fmt.Sprintf("relay %s by UDP %+v, by TCP %+v", of, udp, tcp)
				}
			}
			return ""
		}
		d := examine(t, p)
		// A filter is judged in 700 ms, and a relay may not have heard of the machine yet.
		for try := 2; try <= tries && wrong(d) != ""; try++ {
			t.Logf("behind %v: %s; once more", c.kind, wrong(d))
			d = examine(t, p)
		}
		if s := wrong(d); s != "" {
			t.Errorf("behind %v: %s", c.kind, s)
		}
		if f := d.find("firewall", ""); (f.What != "") != (c.want == "firewall") {
			t.Errorf("behind %v: %+v", c.kind, f)
		}
		p.Run("stop")
		if testing.Verbose() {
			t.Log("\n" + strings.TrimSpace(p.Run("doctor").Stdout))
		}
	}
}

func TestDoctorTellsEasyFromHardNATsByOneRelay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	relay.Start("relay", "--as", "relay").Wait("invite")
	for kind, want := range map[lab.NAT]string{lab.PortRestricted: "endpoint-independent", lab.Symmetric: "endpoint-dependent"} {
		name := strings.ToLower(kind.String())
		p := fwdtest.New(t, l.Home(name, kind).Host(name))
		p.Join(relay.Invite(), name)
		if d := examine(t, p); d.NAT.Mapping != want {
			t.Errorf("behind %v: %+v, want %s\n%+v", kind, d.NAT, want, d.find("nat", ""))
		}
	}
}

func TestDoctorNamesTheRelayThatIsDown(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	one := fwdtest.New(t, l.Public("one", "7.0.0.10"))
	one.Start("relay", "--as", "one").Wait("invite")
	two := fwdtest.New(t, l.Public("two", "7.0.0.11"))
	down := two.Start("relay", "--as", "two", "--invite", one.Invite("--relay"))
	down.Wait("relay")
	p := fwdtest.New(t, l.Home("a", lab.PortRestricted).Host("nas"))
	p.Join(one.Invite(), "nas")
	down.Interrupt()
	d := examine(t, p)
	if f := d.find("relay-udp", "two"); f.Level != "wrong" || !strings.Contains(f.Mend, "fwd relay") {
		t.Errorf("%+v", f)
	}
	if f := d.find("relay-udp", "one"); f.Level != "ok" {
		t.Errorf("%+v", f)
	}
}

func TestDoctorSeesCarrierGradeNAT(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := twoRelays(t, l)
	carrier := l.Carrier("carrier", lab.PortRestricted)
	// A phone's own address is the carrier's; behind a home router it shows only by port mapping.
	p := fwdtest.New(t, l.Home("a", lab.PortRestricted, lab.Behind(carrier), lab.LAN("100.64.200.0/24")).Host("phone"))
	p.Join(relay.Invite(), "phone")
	if f := examine(t, p).find("double-nat", ""); !strings.Contains(f.What, "carrier") {
		t.Errorf("%+v", f)
	}
}

func TestDoctorMeasuresTheLifeOfMappings(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := twoRelays(t, l)
	short := lab.Tracking(lab.Conntrack{UDP: 6 * time.Second, UDPStream: 16 * time.Second})
	p := fwdtest.New(t, l.Home("a", lab.PortRestricted, short).Host("nas"))
	p.Join(relay.Invite(), "nas")
	if f := examine(t, p, "--lifetime").find("lifetime", ""); !strings.Contains(f.What, "10s") || !strings.Contains(f.What, "20s") {
		t.Errorf("%+v", f)
	}
}

func TestStatusAndDoctorTellThatTheRouterMapsPorts(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	relay.Start("relay", "--as", "relay").Wait("invite")
	home := l.Home("a", lab.Symmetric, lab.MapsPorts(lab.PCP, lab.NATPMP))
	p := fwdtest.New(t, home.Host("nas"))
	p.Join(relay.Invite(), "nas")
	p.WaitStatus("a mapped port", func(s fwdtest.Status) bool {
		return s.NAT.PortMapping == "mapped" && s.NAT.Reachability == "public" && len(s.NAT.PublicAddrs) > 0
	})
	d := examine(t, p)
	if f := d.find("nat", ""); d.NAT.Kind != "symmetric" || f.Level != "ok" || !strings.Contains(f.What, "has opened a port") {
		t.Errorf("%+v", f)
	}
	if f := d.find("port-mapping", ""); f.Level != "ok" || !strings.Contains(f.What, home.WAN().String()+":300") || !strings.Contains(f.What, "NAT-PMP, PCP") {
		t.Errorf("%+v", f)
	}
	p.Run("stop")
	for end := time.Now().Add(fwdtest.Limit); len(home.Forwards()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left open at the end: %+v", home.Forwards())
		}
	}
}

func TestDoctorKnowsALoginPageAndAClosedSecondPort(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10", lab.Firewall("udp/4001", "tcp/4001")))
	relay.Start("relay", "--as", "relay").Wait("invite")
	cafe := l.Home("cafe", lab.PortRestricted)
	p := fwdtest.New(t, cafe.Host("laptop"))
	p.Join(relay.Invite(), "laptop")
	d := examine(t, p)
	if f := d.find("relay-second", "relay"); f.Level != "hint" || !strings.Contains(f.What, "UDP 4002") || !strings.Contains(f.Mend, "open 4002, UDP and TCP, and UDP 4003") {
		t.Errorf("%+v", f)
	}
	if f := d.find("portal", ""); f.What != "" {
		t.Errorf("before there is one: %+v", f)
	}
	cafe.Portal("http://login.cafe.example/")
	if f := examine(t, p).find("portal", ""); f.Level != "wrong" || !strings.Contains(f.What, "login.cafe.example") || !strings.Contains(f.Mend, "http://7.0.0.10/") {
		t.Errorf("%+v", f)
	}
}
