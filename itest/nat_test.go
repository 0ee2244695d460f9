//go:build linux

package itest

import (
	"fmt"
	"testing"
	"time"

	"fwd/internal/node"
	"fwd/itest/lab"
)

// maxExamination is how many UDP packets an examination may send to the relays' reflectors, the 3 for a second relay that
// is seen later among them; most are sent only if nothing comes back in 250 ms.
const maxExamination = 24 + 3

func TestEachKindOfNATIsTold(t *testing.T) {
	for relays := 1; relays <= 2; relays++ {
		t.Run(fmt.Sprintf("%d relays", relays), func(t *testing.T) {
			t.Parallel()
			tellNATs(t, relays)
		})
	}
}

func tellNATs(t *testing.T, relays int) {
	l := lab.New(t)
	addrs := make(map[int][]string)
	for n := 1; n <= relays; n++ {
		ip := fmt.Sprintf("7.0.0.1%d", n)
		startPlayer(t, l.Public(fmt.Sprint("relay", n), ip), playerSpec{Number: n, Relay: true}).ready()
		addrs[n] = []string{"/ip4/" + ip + "/" + quic4001, "/ip4/" + ip + "/" + tcp4001}
	}
	const eim, edm, apdf = "endpoint-independent", "endpoint-dependent", "address-and-port-dependent"
	// One relay cannot tell who lets in anybody from who lets in other ports of it.
	anybody := "endpoint-independent"
	if relays == 1 {
		anybody = "address-dependent"
	}
	const tcp = eim
	type row struct {
		host                       *lab.Host
		udp, tcp, filtering, ports string
	}
	home := func(k lab.NAT) *lab.Host { return l.Home(k.String(), k, slow()).Host("h" + k.String()) }
	rows := []row{
		{home(lab.Open), "none", "none", anybody, "kept"},
		{home(lab.FullCone), eim, tcp, anybody, "kept"},
		{home(lab.AddressRestricted), eim, tcp, "address-dependent", "kept"},
		{home(lab.PortRestricted), eim, tcp, apdf, "kept"},
		{home(lab.PortRestrictedInputAccept), eim, tcp, apdf, "kept"},
		{home(lab.PortRange), eim, tcp, apdf, "changed"},
		{home(lab.Symmetric), edm, edm, apdf, "random"},
		{home(lab.SymmetricBlock), edm, "", apdf, "block"},
		{home(lab.Sequential), edm, tcp, apdf, "sequential"},
		{home(lab.UDPBlocked), "blocked", tcp, "unknown", "unknown"},
		{l.Public("guarded", "7.0.0.30", slow(), lab.Firewall()), "none", "none", apdf, "kept"},
		{l.Public("bare", "7.0.0.31", slow()), "none", "none", anybody, "kept"},
	}
	var players []*player
	for i, r := range rows {
		players = append(players, startPlayer(t, r.host, playerSpec{Number: 10 + i, Relays: addrs}))
	}
	for _, p := range players {
		p.ready()
	}
	for i, r := range rows {
		right := func(n node.NATReport) bool {
			return n.UDP == r.udp && (r.tcp == "" || n.TCP == r.tcp) && n.Filtering == r.filtering && n.Ports == r.ports
		}
		packets := func() (sum uint64) {
			for _, f := range l.Flows() {
				if f.Proto == "udp" && f.Src.Addr() == r.host.PublicAddr() && f.Dst.Port() != 4001 {
					sum += f.Packets
				}
			}
			return sum
		}
		var got node.NATReport
		var before uint64 // packets of former examinations
		for try := 1; ; try++ {
			got = players[i].examined()
			for end := time.Now().Add(10 * time.Second); !right(got) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				got = players[i].nat() // more may come
			}
			if right(got) || try == tries {
				break
			}
			t.Logf("%s: told %+v, want %+v", r.host.Name(), got, r)
			before = packets()
			players[i].do("again") // else it holds for minutes
		}
		if !right(got) {
			t.Errorf("%s: told %+v, want %+v", r.host.Name(), got, r)
		}
		n := packets() - before
		if n > maxExamination {
			t.Errorf("%s: %d packets to reflectors, at most %d are promised", r.host.Name(), n, maxExamination)
		}
		t.Logf("%s: %+v, %d packets", r.host.Name(), got, n)
	}
}
