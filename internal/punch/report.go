package punch

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// maxAddrs is how many addresses of one kind a report may list. It bounds what a peer can have us
	// send packets to: no scanner for hire.
	maxAddrs = 8
	// maxReport is the most bytes of a report, 32 addresses of 100 bytes and room to grow.
	maxReport = 8 << 10
	// reportVersion grows with changes that an older peer would misread; new fields do not need it.
	reportVersion = 1
)

// Mapping says how a NAT maps one of our ports towards different destinations.
type Mapping string

const (
	Unknown     Mapping = ""                     // seen by one relay only
	None        Mapping = "none"                 // no NAT: seen at an address of our own
	Independent Mapping = "endpoint-independent" // the same port for every destination
	Dependent   Mapping = "endpoint-dependent"   // another port for every destination
)

// Transport is how one of our listen ports looks from outside.
type Transport struct {
	Mapping  Mapping
	Kept     bool           // the NAT kept the port's number
	Observed []ma.Multiaddr // where the roster's relays see it; empty: nothing gets through, or nobody looked
}

// Report is what one side knows about its own NAT. Its addresses are told to roster peers alone.
type Report struct {
	UDP, TCP  Transport
	LAN       []ma.Multiaddr // of our interfaces, for neighbours
	Confirmed []ma.Multiaddr // can be dialled from the internet: public interface, port-mapped, announced
	Steps     []string       // the steps that this side can do
}

// reportJSON is the wire form. Unknown fields are ignored, so that later versions can say more.
type reportJSON struct {
	Version   int           `json:"v"`
	UDP       transportJSON `json:"udp"`
	TCP       transportJSON `json:"tcp"`
	LAN       []string      `json:"lan,omitempty"`
	Confirmed []string      `json:"confirmed,omitempty"`
	Steps     []string      `json:"steps"`
}

type transportJSON struct {
	Mapping  Mapping  `json:"mapping,omitempty"`
	Kept     bool     `json:"kept,omitempty"`
	Observed []string `json:"observed,omitempty"`
}

// Marshal prints r, each list cut to what a reader takes.
func (r Report) Marshal() []byte {
	b, err := json.Marshal(reportJSON{
		Version: reportVersion,
		UDP:     transportJSON{r.UDP.Mapping, r.UDP.Kept, texts(r.UDP.Observed, "quic-v1")},
		TCP:     transportJSON{r.TCP.Mapping, r.TCP.Kept, texts(r.TCP.Observed, "tcp")},
		LAN:     texts(r.LAN, ""), Confirmed: texts(r.Confirmed, ""),
		Steps: r.Steps[:min(len(r.Steps), maxAddrs)],
	})
	if err != nil {
		panic("a report of strings cannot fail to print: " + err.Error())
	}
	return b
}

// ParseReport reads a peer's report. What is not an address that can be punched to is dropped, so that
// a newer peer may list kinds that we do not know.
func ParseReport(b []byte) (Report, error) {
	if len(b) > maxReport {
		return Report{}, fmt.Errorf("NAT report of %d bytes; at most %d are taken", len(b), maxReport)
	}
	var j reportJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return Report{}, fmt.Errorf("NAT report: %w", err)
	}
	if j.Version != reportVersion {
		return Report{}, fmt.Errorf("NAT report of version %d; this fwd knows %d", j.Version, reportVersion)
	}
	r := Report{
		UDP:       Transport{j.UDP.Mapping.known(), j.UDP.Kept, addrs(j.UDP.Observed, "quic-v1")},
		TCP:       Transport{j.TCP.Mapping.known(), j.TCP.Kept, addrs(j.TCP.Observed, "tcp")},
		LAN:       addrs(j.LAN, ""),
		Confirmed: addrs(j.Confirmed, ""),
	}
	for _, s := range j.Steps {
		if len(r.Steps) < maxAddrs && (s == StepDirect || s == StepOpen) {
			r.Steps = append(r.Steps, s)
		}
	}
	return r, nil
}

func (m Mapping) known() Mapping {
	switch m {
	case None, Independent, Dependent:
		return m
	}
	return Unknown
}

func texts(list []ma.Multiaddr, transport string) []string {
	var out []string
	for _, a := range list {
		if len(out) < maxAddrs && punchable(a, transport) {
			out = append(out, a.String())
		}
	}
	return out
}

func addrs(list []string, transport string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range list {
		if len(out) >= maxAddrs {
			break
		}
		a, err := ma.NewMultiaddr(s)
		if err == nil && punchable(a, transport) && !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	return out
}

// punchable says whether a is an IP address and port of that transport ("" for either), and nothing more.
func punchable(a ma.Multiaddr, transport string) bool {
	ap, ok := addrPort(a)
	if !ok || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() || ap.Addr().Zone() != "" {
		return false
	}
	return transport == "" || transport == transportOf(a)
}

// transportOf is "quic-v1", "tcp", or nothing for what is neither.
func transportOf(a ma.Multiaddr) string {
	switch p := a.Protocols(); {
	case len(p) == 2 && p[1].Code == ma.P_TCP:
		return "tcp"
	case len(p) == 3 && p[1].Code == ma.P_UDP && p[2].Code == ma.P_QUIC_V1:
		return "quic-v1"
	}
	return ""
}

// addrPort is the IP address and port of a QUIC or TCP address.
func addrPort(a ma.Multiaddr) (netip.AddrPort, bool) {
	if len(a) == 0 || transportOf(a) == "" {
		return netip.AddrPort{}, false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.AddrPort{}, false
	}
	port, err := netip.ParseAddrPort("0.0.0.0:" + a[1].Value())
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), port.Port()), true
}
