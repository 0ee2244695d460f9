package punch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

// nat is a side of the tables: its mapping, seen at 7.0.0.n.
func nat(n int, m Mapping, kept bool) Report {
	at := fmt.Sprintf("/ip4/7.0.0.%d", n)
	return Report{
		UDP:   Transport{Mapping: m, Kept: kept, Observed: []ma.Multiaddr{ma.StringCast(at + "/udp/4001/quic-v1")}},
		TCP:   Transport{Mapping: m, Kept: kept, Observed: []ma.Multiaddr{ma.StringCast(at + "/tcp/4001")}},
		Steps: []string{StepDirect, StepOpen},
		LAN:   []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/192.168.%d.10/udp/4001/quic-v1", n))},
	}
}

func with(r Report, change func(*Report)) Report { change(&r); return r }

// text is a plan as the tables write it: one word a step, with the roles that the lower ID takes.
func text(p Plan) string {
	var words []string
	for _, s := range p.Steps {
		w := fmt.Sprintf("%s@%d:", s.Name, s.At.Milliseconds())
		for _, d := range s.Low.Dials {
			w += fmt.Sprintf(" %s %s+%d", d.Role, d.Addr, d.After.Milliseconds())
		}
		if a := s.Low.Array; a != nil {
			w += fmt.Sprintf(" %s: %d sockets to %v", a.Role, a.Sockets, a.To)
		}
		if p := s.Low.Spray; p != nil {
			w += fmt.Sprintf(" after %d: %v ports %d-%d round %d, %d foretold from %v", p.After.Milliseconds(), p.To, p.Low, p.High, p.Round, len(p.List), append(p.List, 0)[0])
			if p.Fresh {
				w += ", from a fresh socket"
			}
		}
		words = append(words, w)
	}
	return strings.Join(words, "\n")
}

func TestPlans(t *testing.T) {
	open := with(nat(2, None, true), func(r *Report) { r.Confirmed = slices.Concat(r.UDP.Observed, r.TCP.Observed) })
	noUDP := with(nat(2, Independent, true), func(r *Report) { r.UDP = Transport{} })
	for _, c := range []struct {
		name, want string
		low, high  Report
	}{
		{"equal NATs: the lower ID is the client", `
open@0: client /ip4/7.0.0.2/udp/4001/quic-v1+0 client /ip4/7.0.0.2/tcp/4001+300
open@1500: server /ip4/7.0.0.2/udp/4001/quic-v1+0 server /ip4/7.0.0.2/tcp/4001+300`,
			nat(1, Independent, true), nat(2, Independent, true)},
		{"the harder NAT is the client", `
open@0: server /ip4/7.0.0.2/udp/4001/quic-v1+0 server /ip4/7.0.0.2/tcp/4001+300
open@1500: client /ip4/7.0.0.2/udp/4001/quic-v1+0 client /ip4/7.0.0.2/tcp/4001+300`,
			nat(1, Independent, true), nat(2, Dependent, false)},
		{"seen by one relay only, the port that was not kept counts as harder", `
open@0: server /ip4/7.0.0.2/udp/4001/quic-v1+0 server /ip4/7.0.0.2/tcp/4001+300
open@1500: client /ip4/7.0.0.2/udp/4001/quic-v1+0 client /ip4/7.0.0.2/tcp/4001+300`,
			nat(1, Unknown, true), nat(2, Unknown, false)},
		{"a public side is dialled, then punched for the case of a firewall", `
direct@0: plain /ip4/7.0.0.2/udp/4001/quic-v1+0 plain /ip4/7.0.0.2/tcp/4001+0
open@300: client /ip4/7.0.0.2/udp/4001/quic-v1+0 client /ip4/7.0.0.2/tcp/4001+300
open@1800: server /ip4/7.0.0.2/udp/4001/quic-v1+0 server /ip4/7.0.0.2/tcp/4001+300`,
			nat(1, Dependent, false), open},
		{"behind one address: neighbours", `
direct@0: plain /ip4/192.168.1.10/udp/4001/quic-v1+0
open@300: client /ip4/7.0.0.1/udp/4001/quic-v1+0 client /ip4/7.0.0.1/tcp/4001+300
open@1800: server /ip4/7.0.0.1/udp/4001/quic-v1+0 server /ip4/7.0.0.1/tcp/4001+300`,
			nat(1, Independent, true), nat(1, Independent, true)},
		{"one side has no UDP: TCP at once", `
open@0: server /ip4/7.0.0.2/tcp/4001+0
open@1500: client /ip4/7.0.0.2/tcp/4001+0`,
			nat(1, Independent, true), noUDP},
		{"both change ports: nothing to open", ``, nat(1, Dependent, false), nat(2, Dependent, false)},
		{"a side that knows no step", ``, nat(1, Independent, true), with(nat(2, Independent, true), func(r *Report) { r.Steps = nil })},
		{"nobody was seen", ``, Report{Steps: []string{StepDirect, StepOpen}}, nat(2, Independent, true)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := text(MakePlan(c.low, c.high)), strings.TrimSpace(c.want); got != want {
				t.Errorf("plan\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestPlansGiveBothSidesTheSameStepsAndOppositeRoles(t *testing.T) {
	kinds := []Report{
		nat(1, None, true), nat(2, Independent, true), nat(3, Dependent, false), nat(4, Unknown, true), nat(5, Unknown, false),
		with(nat(6, Independent, true), func(r *Report) { r.UDP = Transport{} }),
	}
	for _, a := range kinds {
		for _, b := range kinds {
			p := MakePlan(a, b)
			if reason(a, b, "", "") == "" {
				t.Errorf("%v × %v: no reason for the case that it fails", a.UDP, b.UDP)
			}
			for _, s := range p.Steps {
				if s.Name != StepOpen {
					continue
				}
				l, h := s.Low.Dials, s.High.Dials
				if len(l) == 0 || len(h) == 0 || l[0].Role == h[0].Role {
					t.Errorf("%v × %v: roles in %+v", a.UDP, b.UDP, s)
				}
				if n := len(l) + len(h); n > 8*maxAddrs {
					t.Errorf("%d dials in one step", n)
				}
			}
		}
	}
}

// strict is a NAT or firewall that lets in only the ports that were sent to.
func strict(r Report) Report {
	r.UDP.Filtering = SamePort
	r.Steps = []string{StepDirect, StepOpen, StepFresh, Again, StepPredict, StepGuess}
	r.Nonce = make([]byte, nonceSize)
	return r
}

func sequence(r Report, last uint16, step int) Report {
	r.UDP.Ports = Ports{Order: Sequential, Last: last, Step: step}
	return r
}

func fresh(r Report, port uint16) Report { r.Fresh = port; return r }

// indoors is a side that its relays see at its own private address.
func indoors(r Report) Report {
	r.UDP.Observed = []ma.Multiaddr{ma.StringCast("/ip4/192.168.1.7/udp/4001/quic-v1")}
	r.TCP.Observed = []ma.Multiaddr{ma.StringCast("/ip4/192.168.1.7/tcp/4001")}
	return r
}

// What a relay in one side's network sees of it is the address of somebody else's machine in the other's.
func TestPrivateAddressesAreNotSentToFromOutside(t *testing.T) {
	inside := indoors(fresh(strict(nat(1, None, true)), 50001))
	random := strict(nat(3, Dependent, false))
	if p := MakePlan(inside, random); len(p.Steps) > 0 {
		t.Errorf("from another network:\n%s", text(p))
	}
	both := with(inside, func(r *Report) { r.UDP.Observed = append(r.UDP.Observed, random.UDP.Observed...) })
	both.UDP.Mapping = Independent
	for _, other := range []Report{strict(nat(2, Independent, true)), strict(nat(2, Dependent, false))} {
		p := MakePlan(both, other)
		if len(p.Steps) == 0 {
			t.Error("nothing is tried at the public address")
		}
		for _, s := range p.Steps {
			if what := fmt.Sprintf("%+v", s.High); strings.Contains(what, "192.168.") {
				t.Errorf("%s: %s", s.Name, what)
			}
		}
	}
	// Two offices of one company, and its relay: one private network of several subnets.
	office := with(strict(nat(2, None, true)), func(r *Report) {
		r.UDP.Observed, r.TCP = []ma.Multiaddr{ma.StringCast("/ip4/10.20.0.9/udp/4001/quic-v1")}, Transport{}
	})
	if p := MakePlan(inside, office); !strings.Contains(text(p), "/ip4/10.20.0.9/udp/4001/quic-v1") {
		t.Errorf("in one private network:\n%s", text(p))
	}
}

func TestPlansWithForwardedPorts(t *testing.T) {
	can := func(r Report) Report {
		return with(r, func(r *Report) { r.TCP, r.Steps = Transport{}, append(r.Steps, StepForward) })
	}
	hard, other, easy := can(strict(nat(1, Dependent, false))), can(strict(nat(2, Dependent, false))), can(strict(nat(2, Independent, true)))
	for _, c := range []struct {
		name, want string
		low, high  Report
	}{
		{"both change ports", `forward@0: plain /ip4/7.0.0.2/udp/4001/quic-v1+0`, hard, other},
		{"both in a row: after what is foretold", `
predict@0: client: 16 sockets to 7.0.0.2:42018
forward@1000: plain /ip4/7.0.0.2/udp/4001/quic-v1+0`, sequence(hard, 51000, 1), sequence(other, 42010, 1)},
		{"one does: that one alone is dialled", `
guess@0: client: 256 sockets to 7.0.0.2:4001
forward@0:`, hard, easy},
		{"an older peer", ``, hard, noTCP(strict(nat(2, Dependent, false)))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := text(MakePlan(c.low, c.high)), strings.TrimSpace(c.want); got != want {
				t.Errorf("plan\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestPlansWithFreshPorts(t *testing.T) {
	one, other := noTCP(strict(nat(1, Independent, true))), noTCP(strict(nat(2, Independent, true)))
	hard := noTCP(strict(nat(2, Dependent, false)))
	usual := func(role, swapped string) string {
		const plan = "open@0: %s /ip4/7.0.0.2/udp/4001/quic-v1+0\nopen@1500: %s /ip4/7.0.0.2/udp/4001/quic-v1+0"
		return fmt.Sprintf(plan, role, swapped)
	}
	for _, c := range []struct {
		name, want string
		low, high  Report
	}{
		{"both have one: beside simultaneous open", `
open@0: client /ip4/7.0.0.2/udp/4001/quic-v1+0
fresh@500: client: 1 sockets to 7.0.0.2:50002
open@1500: server /ip4/7.0.0.2/udp/4001/quic-v1+0`,
			fresh(one, 50001), fresh(other, 50002)},
		{"the lower has none", usual("client", "server"), one, fresh(other, 50002)},
		{"the higher has none", usual("client", "server"), fresh(one, 50001), other},
		{"an older peer", usual("client", "server"),
			fresh(one, 50001), fresh(with(other, func(r *Report) { r.Steps = []string{StepDirect, StepOpen} }), 50002)},
		{"another port for each destination: the easy side sprays from its own", `
guess@0: after 612: 7.0.0.2 ports 1024-65535 round 1, 0 foretold from 0, from a fresh socket`,
			fresh(one, 50001), fresh(hard, 50002)},
		{"the array waits for it there", `
guess@0: client: 512 sockets to 7.0.0.1:50001`, hard, fresh(with(one, func(r *Report) {}), 50001)},
		{"the next port in a row", `
predict@0: after 150: 7.0.0.2 ports 0-0 round 0, 32 foretold from 42011, from a fresh socket`,
			fresh(one, 50001), sequence(hard, 42010, 1)},
		{"an older peer waits at the QUIC port", `
guess@0: after 356: 7.0.0.2 ports 1024-65535 round 0, 0 foretold from 0`,
			fresh(one, 50001), with(hard, func(r *Report) { r.Steps = []string{StepDirect, StepOpen, StepFresh, StepPredict, StepGuess} })},
		{"guessing is turned off on one side", `
open@0: client /ip4/7.0.0.2/udp/4001/quic-v1+0
fresh@500: client: 1 sockets to 7.0.0.2:50002
open@1500: server /ip4/7.0.0.2/udp/4001/quic-v1+0`,
			fresh(one, 50001), fresh(with(other, func(r *Report) { r.Steps = []string{StepDirect, StepOpen, StepFresh} }), 50002)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := MakePlan(c.low, c.high)
			if got, want := text(p), strings.TrimSpace(c.want); got != want {
				t.Errorf("plan\n%s\nwant\n%s", got, want)
			}
			for _, s := range p.Steps {
				if s.Name == StepFresh && (s.High.Array == nil || s.High.Array.Role != Server || s.High.Array.To.String() != "7.0.0.1:50001") {
					t.Errorf("the other side does %+v", s.High)
				}
			}
		})
	}
}

func TestPlansThatForetellPorts(t *testing.T) {
	easy, random := strict(nat(1, Independent, true)), strict(nat(2, Dependent, false))
	block := strict(nat(2, Dependent, false))
	block.UDP.Ports = Ports{Order: Block, Low: 50000, High: 50511}
	untested := noTCP(easy)
	untested.UDP.Filtering = NotTested
	for _, c := range []struct {
		name, want string
		low, high  Report
	}{
		{"random ports: the easy side sprays after the array is there", `
guess@0: after 356: 7.0.0.2 ports 1024-65535 round 0, 0 foretold from 0`,
			noTCP(easy), noTCP(random)},
		{"the side of random ports waits as client", `
guess@0: client: 256 sockets to 7.0.0.1:4001`,
			noTCP(random), noTCP(easy)},
		{"a small range needs few sockets", `
guess@0: after 164: 7.0.0.2 ports 50000-50511 round 0, 0 foretold from 0`,
			noTCP(easy), noTCP(block)},
		{"a sequence is foretold", `
predict@0: after 150: 7.0.0.2 ports 0-0 round 0, 32 foretold from 42011`,
			noTCP(easy), noTCP(sequence(random, 42010, 1))},
		{"downwards, too", `
predict@0: after 150: 7.0.0.2 ports 0-0 round 0, 32 foretold from 42008`,
			noTCP(easy), noTCP(sequence(random, 42010, -2))},
		{"two sequences meet in their middles", `
predict@0: client: 16 sockets to 7.0.0.2:42018`,
			noTCP(sequence(strict(nat(1, Dependent, false)), 51000, 1)), noTCP(sequence(random, 42010, 1))},
		{"filtering not tested: simultaneous open goes first", `
open@0: server /ip4/7.0.0.2/udp/4001/quic-v1+0
guess@500: after 356: 7.0.0.2 ports 1024-65535 round 0, 0 foretold from 0
open@1500: client /ip4/7.0.0.2/udp/4001/quic-v1+0`,
			untested, noTCP(random)},
		{"random × random: nothing", ``, noTCP(strict(nat(1, Dependent, false))), noTCP(random)},
		{"random × sequence: nothing", ``, noTCP(strict(nat(1, Dependent, false))), noTCP(sequence(random, 42010, 1))},
		{"a peer that cannot", ``, noTCP(easy), noTCP(with(random, func(r *Report) { r.Steps = []string{StepDirect, StepOpen} }))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := text(MakePlan(c.low, c.high)), strings.TrimSpace(c.want); got != want {
				t.Errorf("plan\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestNoPlanIsOverBudget(t *testing.T) {
	var kinds []Report
	for i, m := range []Mapping{Unknown, None, Independent, Dependent} {
		for _, f := range []Filtering{NotTested, Anybody, SameAddress, SamePort} {
			for _, p := range []Ports{{}, {Order: Sequential, Step: 1, Last: 65530}, {Order: Block, Low: 50000, High: 50511}, {Order: Random, Low: lowestPort, High: 65535}} {
				r := strict(nat(i+1, m, m != Dependent))
				r.UDP.Filtering, r.UDP.Ports, r.Fresh = f, p, 50000
				kinds = append(kinds, r)
			}
		}
	}
	for _, a := range kinds {
		for _, b := range kinds {
			ports, n := 0, 0
			for _, s := range MakePlan(a, b).Steps {
				for _, part := range []Part{s.Low, s.High} {
					if part.Array != nil && (part.Array.Sockets > 2*guessArray || !part.Array.To.IsValid()) {
						t.Errorf("%+v", part.Array)
					}
					if sp := part.Spray; sp != nil {
						n++
						ports += max(len(sp.List), min(int(sp.High)-int(sp.Low)+1, roundPorts))
					}
				}
				both := s.Low.Array != nil && s.High.Array != nil
				if !both && ((s.Low.Spray == nil) != (s.High.Array == nil) || (s.Low.Array == nil) != (s.High.Spray == nil)) {
					t.Errorf("parts do not fit: %+v", s)
				}
			}
			if ports > addrPorts || n > rounds {
				t.Errorf("%v × %v: %d ports in %d rounds", a.UDP, b.UDP, ports, n)
			}
		}
	}
}

func TestReasonsNameThePairWhatWasTriedAndTheMend(t *testing.T) {
	hard, easy := strict(nat(1, Dependent, false)), strict(nat(2, Independent, true))
	block := with(hard, func(r *Report) { r.UDP.Ports = Ports{Order: Block, Low: 50000, High: 50511} })
	for _, c := range []struct {
		a, b Report
		want []string
	}{
		{hard, hard, []string{"Both NATs change ports per destination", "turn on UPnP"}},
		{easy, hard, []string{"One NAT changes ports per destination", "here one port for all destinations", "turn on UPnP or NAT-PMP on the router here; or forward UDP port 4001 on the router at nas"}},
		{hard, easy, []string{"One NAT changes ports per destination", "at nas one port for all destinations", "turn on UPnP or NAT-PMP on the router at nas; or forward UDP port 4001 on the router here"}},
		{easy, easy, []string{"turn on UPnP or NAT-PMP on the router here, or forward UDP port 4001 on it"}},
		{easy, indoors(nat(1, None, true)), []string{"No relay can tell", "at nas a relay in the same network", "a relay outside the network at nas"}},
		{easy, with(hard, func(r *Report) { r.Steps = []string{StepDirect, StepOpen} }), []string{"guessing ports is turned off at nas, or used up for today. Would help"}},
		{easy, block, []string{"the carrier at nas changes ports per destination"}},
		{block, block, []string{"IPv6 or a public address"}},
		{easy, with(easy, func(r *Report) { r.UDP = Transport{} }), []string{"UDP is blocked on one side, and TCP did not get through", "let UDP out at nas"}},
		{nat(1, Unknown, false), nat(2, Unknown, false), []string{"Both NATs change ports, perhaps per destination (seen by one relay only)"}},
		{Report{}, easy, []string{"No relay can tell", "a relay that can be reached from both sides"}},
	} {
		got := reason(c.a, c.b, "nas", "tried simultaneous open by UDP; nothing came back")
		for _, want := range append(c.want, "Tried simultaneous open by UDP; nothing came back") {
			if !strings.Contains(got, want) {
				t.Errorf("%q does not contain %q", got, want)
			}
		}
	}
}
