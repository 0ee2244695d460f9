package portmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// PCP, RFC 6887 §7 and §11; sizes in bytes:
//
//	request  2 ‖ opcode ‖ 0 (2) ‖ seconds (4) ‖ our address (16)
//	answer   2 ‖ opcode with the highest bit ‖ 0 ‖ result ‖ seconds (4) ‖ epoch (4) ‖ 0 (12)
//	MAP      nonce (12) ‖ protocol ‖ 0 (3) ‖ our port (2) ‖ external port (2) ‖ external address (16)
//
// IPv4 addresses are written as IPv6 ones (::ffff:a.b.c.d).
const (
	pcpVersion  = 2
	opAnnounce  = 0
	opMap       = 1
	isAnswer    = 0x80
	pcpHeader   = 24
	pcpMapping  = 36
	badVersion  = 1
	pcpLifetime = 4 // where the seconds are
)

// pcpResults say what a router refuses, RFC 6887 §7.4.
var pcpResults = [...]string{
	2: "not authorized", 3: "malformed request", 4: "unsupported opcode", 5: "unsupported option",
	6: "malformed option", 7: "network failure", 8: "no resources", 9: "unsupported protocol",
	10: "this machine's quota is used up", 11: "it cannot provide an external port", 12: "there is another NAT in between",
	13: "excessive remote peers",
}

func announcement(own netip.Addr) []byte { return pcpRequest(own, opAnnounce, 0) }

func pcpRequest(own netip.Addr, op byte, life time.Duration) []byte {
	b := make([]byte, pcpHeader, pcpHeader+pcpMapping)
	b[0], b[1] = pcpVersion, op
	binary.BigEndian.PutUint32(b[pcpLifetime:], uint32(life/time.Second))
	if own.IsValid() {
		a := own.As16()
		copy(b[8:], a[:])
	}
	return b
}

func mapRequest(own netip.Addr, nonce Nonce, p Port, preferred netip.AddrPort, life time.Duration) []byte {
	b := append(pcpRequest(own, opMap, life), nonce[:]...)
	b = append(b, byte(p.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, p.Number)
	b = binary.BigEndian.AppendUint16(b, preferred.Port())
	a := preferred.Addr().As16()
	return append(b, a[:]...)
}

// isPCP tells an answer of a router that speaks PCP, whatever it says.
func isPCP(b []byte) bool {
	return len(b) >= pcpHeader && b[0] == pcpVersion && b[1]&isAnswer != 0 && b[3] != badVersion
}

// parseMap reads the answer to a MAP request for p.
func parseMap(b []byte, nonce Nonce, p Port) (m Mapping, err error) {
	if len(b) < pcpHeader+pcpMapping || len(b)%4 != 0 || b[0] != pcpVersion || b[1] != isAnswer|opMap {
		return m, errMalformed
	}
	rest := b[pcpHeader:]
	if Nonce(rest[:12]) != nonce || Protocol(rest[12]) != p.Protocol || binary.BigEndian.Uint16(rest[16:]) != p.Number {
		return m, errMalformed
	}
	if result := int(b[3]); result != 0 {
		if result < len(pcpResults) && pcpResults[result] != "" {
			return m, fmt.Errorf("refused: %s", pcpResults[result])
		}
		return m, fmt.Errorf("refused with result %d", result)
	}
	m.Life = seconds(b[pcpLifetime:])
	m.External = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest[20:36])).Unmap(), binary.BigEndian.Uint16(rest[18:]))
	return m, nil
}

func seconds(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint32(b)) * time.Second }
