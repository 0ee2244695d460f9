package punch

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxReport is the most bytes of a report, 32 addresses of 100 bytes and room to grow.
	maxReport = 8 << 10
	// reportVersion grows with changes that an older peer would misread; new fields do not need it.
	reportVersion = 1
	// nonceSize is what each side adds to the token of a punch, bytes.
	nonceSize = 16
	// maxProof is the most bytes of a relay's signature.
	maxProof = 256
)

// Mapping says how a NAT maps one of our ports towards different destinations (words of RFC 4787).
type Mapping string

const (
	Unknown     Mapping = ""                     // seen at one port of one relay only
	None        Mapping = "none"                 // no NAT: seen at an address of our own
	Independent Mapping = "endpoint-independent" // the same port for every destination
	Dependent   Mapping = "endpoint-dependent"   // another port for every destination
)

// Filtering says whose packets come in to a port that has sent some (words of RFC 4787).
type Filtering string

const (
	NotTested   Filtering = ""
	Anybody     Filtering = "endpoint-independent"
	SameAddress Filtering = "address-dependent" // of an address that was sent to; or anybody's, if one relay had to judge
	SamePort    Filtering = "address-and-port-dependent"
)

// Transport is how one of our listen ports looks from outside.
type Transport struct {
	Mapping   Mapping
	Kept      bool // the NAT kept the port's number
	Filtering Filtering
	Ports     Ports          // how new flows get theirs
	Observed  []ma.Multiaddr // where the roster's relays see it, the newest first; empty: nothing gets through, or nobody looked
}

// Router is what is known of the router beside what it does to packets.
type Router struct {
	PortMapping string // "", "none", "found" (it maps ports, but to no public address), "mapped"
	Double      bool   // it has no public address itself: another NAT follows
}

// Proof is a relay's word on where a peer was seen.
type Proof struct {
	Relay     peer.ID
	Addr      ma.Multiaddr
	At        time.Time // whole seconds
	Signature []byte
}

// Report is what one side knows about its own NAT. Its addresses are told to roster peers alone.
type Report struct {
	UDP, TCP  Transport
	LAN       []ma.Multiaddr // of our interfaces, and of our router's if that is in a private network; for neighbours
	Confirmed []ma.Multiaddr // can be dialled from the internet: public interface, port-mapped, announced
	Router    Router
	Proof     Proof    // for the newest of UDP.Observed
	Fresh     uint16   // where a socket without a past is seen, at the address of the newest IPv4 one of UDP.Observed; 0: there is none
	Steps     []string // the steps that this side can do
	Nonce     []byte   // of this punch
}

// reportJSON is the wire form. Unknown fields are ignored, so that later versions can say more.
type reportJSON struct {
	Version   int           `json:"v"`
	UDP       transportJSON `json:"udp"`
	TCP       transportJSON `json:"tcp"`
	LAN       []string      `json:"lan,omitempty"`
	Confirmed []string      `json:"confirmed,omitempty"`
	Router    *routerJSON   `json:"router,omitempty"`
	Proof     *proofJSON    `json:"proof,omitempty"`
	Fresh     uint16        `json:"fresh,omitempty"`
	Steps     []string      `json:"steps"`
	Nonce     []byte        `json:"nonce,omitempty"`
}

type transportJSON struct {
	Mapping   Mapping    `json:"mapping,omitempty"`
	Kept      bool       `json:"kept,omitempty"`
	Filtering Filtering  `json:"filtering,omitempty"`
	Ports     *portsJSON `json:"ports,omitempty"`
	Observed  []string   `json:"observed,omitempty"`
}

type portsJSON struct {
	Order Order  `json:"order"`
	Low   uint16 `json:"low,omitempty"`
	High  uint16 `json:"high,omitempty"`
	Step  int    `json:"step,omitempty"`
	Last  uint16 `json:"last,omitempty"`
}

type routerJSON struct {
	PortMapping string `json:"port_mapping,omitempty"`
	Double      bool   `json:"double,omitempty"`
}

type proofJSON struct {
	Relay     string `json:"relay"`
	Addr      string `json:"addr"`
	At        int64  `json:"at"`
	Signature []byte `json:"sig"`
}

// Marshal prints r, each list cut to what a reader takes.
func (r Report) Marshal() []byte {
	j := reportJSON{
		Version: reportVersion,
		UDP:     r.UDP.json("quic-v1"), TCP: r.TCP.json("tcp"),
		LAN: texts(r.LAN, ""), Confirmed: texts(r.Confirmed, ""),
		Fresh: r.Fresh,
		Steps: r.Steps[:min(len(r.Steps), maxAddrs)],
		Nonce: r.Nonce,
	}
	if r.Router != (Router{}) {
		j.Router = &routerJSON{r.Router.PortMapping, r.Router.Double}
	}
	if p := r.Proof; p.Relay != "" && len(p.Addr) > 0 {
		j.Proof = &proofJSON{p.Relay.String(), p.Addr.String(), p.At.Unix(), p.Signature}
	}
	b, err := json.Marshal(j)
	if err != nil {
		panic("a report of strings cannot fail to print: " + err.Error())
	}
	return b
}

func (t Transport) json(transport string) transportJSON {
	j := transportJSON{t.Mapping, t.Kept, t.Filtering, nil, texts(t.Observed, transport)}
	if p := t.Ports; p.Order != NoOrder {
		j.Ports = &portsJSON{p.Order, p.Low, p.High, p.Step, p.Last}
	}
	return j
}

// ParseReport reads a peer's report. What is not an address that can be punched to is dropped, and so is
// every other thing that makes no sense, so that a newer peer may say what we do not know.
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
		UDP: j.UDP.transport("quic-v1"), TCP: j.TCP.transport("tcp"),
		LAN: addrs(j.LAN, ""), Confirmed: addrs(j.Confirmed, ""),
		Proof: j.Proof.proof(),
	}
	if j.Fresh >= lowestPort {
		r.Fresh = j.Fresh
	}
	if j.Router != nil {
		r.Router.Double = j.Router.Double
		switch m := j.Router.PortMapping; m {
		case "none", "found", "mapped":
			r.Router.PortMapping = m
		}
	}
	if len(j.Nonce) == nonceSize {
		r.Nonce = j.Nonce
	}
	for _, s := range j.Steps {
		if len(r.Steps) < maxAddrs && knownSteps[s] {
			r.Steps = append(r.Steps, s)
		}
	}
	return r, nil
}

func (j transportJSON) transport(transport string) Transport {
	t := Transport{
		Mapping: j.Mapping.known(), Kept: j.Kept, Filtering: j.Filtering.known(),
		Observed: addrs(j.Observed, transport),
	}
	if p := j.Ports; p != nil {
		t.Ports = Ports{p.Order, p.Low, p.High, p.Step, p.Last}.sane()
	}
	return t
}

func (j *proofJSON) proof() Proof {
	if j == nil || len(j.Signature) > maxProof {
		return Proof{}
	}
	relay, err := peer.Decode(j.Relay)
	addr := addrs([]string{j.Addr}, "quic-v1")
	if err != nil || relay == "" || len(addr) == 0 {
		return Proof{}
	}
	return Proof{relay, addr[0], time.Unix(j.At, 0), j.Signature}
}

func (m Mapping) known() Mapping {
	switch m {
	case None, Independent, Dependent:
		return m
	}
	return Unknown
}

func (f Filtering) known() Filtering {
	switch f {
	case Anybody, SameAddress, SamePort:
		return f
	}
	return NotTested
}
