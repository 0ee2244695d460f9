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
		for _, d := range s.Low {
			w += fmt.Sprintf(" %s %s+%d", d.Role, d.Addr, d.After.Milliseconds())
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
			if p.Reason == "" {
				t.Errorf("%v × %v: no reason for the case that it fails", a.UDP, b.UDP)
			}
			for _, s := range p.Steps {
				if s.Name != StepOpen {
					continue
				}
				if len(s.Low) == 0 || len(s.High) == 0 || s.Low[0].Role == s.High[0].Role {
					t.Errorf("%v × %v: roles in %+v", a.UDP, b.UDP, s)
				}
				if n := len(s.Low) + len(s.High); n > 8*maxAddrs {
					t.Errorf("%d dials in one step", n)
				}
			}
		}
	}
}

func TestReasonsNameTheCause(t *testing.T) {
	hard, easy := nat(1, Dependent, false), nat(2, Independent, true)
	for _, c := range []struct {
		a, b Report
		want string
	}{
		{hard, hard, "both NATs change ports per destination"},
		{easy, hard, "one NAT changes ports per destination"},
		{easy, with(easy, func(r *Report) { r.UDP = Transport{} }), "UDP is blocked on one side, and TCP did not get through"},
		{nat(1, Unknown, false), nat(2, Unknown, false), "both NATs change ports, perhaps per destination (seen by one relay only)"},
		{easy, easy, "the NATs let nothing in that was asked for from inside"},
		{Report{}, easy, "no relay can tell at which address the peers are seen"},
	} {
		if got := MakePlan(c.a, c.b).Reason; got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if got := MakePlan(c.b, c.a).Reason; got != c.want {
			t.Errorf("other way round: got %q, want %q", got, c.want)
		}
	}
}
