package portmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// NAT-PMP, RFC 6886 §3; sizes in bytes:
//
//	address  0 ‖ 0                                                     asks for the external address
//	answer   0 ‖ 128 ‖ result (2) ‖ epoch (4) ‖ address (4)
//	map      0 ‖ 1 UDP, 2 TCP ‖ 0 (2) ‖ our port (2) ‖ external port (2) ‖ seconds (4)
//	answer   0 ‖ 129, 130 ‖ result (2) ‖ epoch (4) ‖ our port (2) ‖ external port (2) ‖ seconds (4)
const (
	olderAddressSize = 12
	olderMapSize     = 16
)

var olderResults = [...]string{
	1: "unsupported version", 2: "not authorized", 3: "network failure", 4: "no resources", 5: "unsupported opcode",
}

// addressRequest asks for the router's external address.
var addressRequest = []byte{0, 0}

func olderOp(p Protocol) byte {
	if p == TCP {
		return 2
	}
	return 1
}

func olderRequest(p Port, preferred uint16, life time.Duration) []byte {
	b := []byte{0, olderOp(p.Protocol), 0, 0}
	b = binary.BigEndian.AppendUint16(b, p.Number)
	b = binary.BigEndian.AppendUint16(b, preferred)
	return binary.BigEndian.AppendUint32(b, uint32(life/time.Second))
}

// olderResult reads what begins every answer; they may be cut short where the result is none.
func olderResult(b []byte, op byte, size int) error {
	if len(b) < 4 || b[0] != 0 || b[1] != isAnswer|op {
		return errMalformed
	}
	switch result := int(binary.BigEndian.Uint16(b[2:])); {
	case result == 0 && len(b) < size:
		return errMalformed
	case result == 0:
		return nil
	case result < len(olderResults):
		return fmt.Errorf("refused: %s", olderResults[result])
	default:
		return fmt.Errorf("refused with result %d", result)
	}
}

// parseAddress reads the answer to addressRequest.
func parseAddress(b []byte) (netip.Addr, error) {
	if err := olderResult(b, 0, olderAddressSize); err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom4([4]byte(b[8:12])), nil
}

// parseOlderMap reads the answer to a request for p; the address is in another answer.
func parseOlderMap(b []byte, p Port) (m Mapping, err error) {
	if err := olderResult(b, olderOp(p.Protocol), olderMapSize); err != nil {
		return m, err
	}
	if binary.BigEndian.Uint16(b[8:]) != p.Number {
		return m, errMalformed
	}
	m.Life = seconds(b[12:])
	m.External = netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(b[10:]))
	return m, nil
}
