//go:build linux

package lab

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Flow is what the internet's core has carried from one UDP or TCP endpoint to another, one direction.
// A packet that dies of its TTL in the core was not carried.
type Flow struct {
	Proto    string // "udp" or "tcp"
	Src, Dst netip.AddrPort
	Packets  uint64
	Bytes    uint64
}

func (f Flow) String() string {
	return fmt.Sprintf("%s %v > %v: %d packets, %d bytes", f.Proto, f.Src, f.Dst, f.Packets, f.Bytes)
}

// maxFlows bounds the table of flows: four rounds of a birthday punch of 256 sockets against 1024 ports fit.
const maxFlows = 1 << 16

// countFlows makes the core, of so many routers in a row, count what it forwards.
func (n *node) countFlows(routers byte) error {
	for _, f := range []struct {
		family         nftables.TableFamily
		address        nftables.SetDatatype
		ttl            uint32 // offsets and length in the header
		src, dst, size uint32
	}{
		{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 8, 12, 16, 4},
		{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 7, 8, 24, 16},
	} {
		words := int(f.size / 4)
		err := n.install(f.family, "count", func(r *ruleset) {
			flows := r.set(&nftables.Set{Name: "flows", Size: maxFlows, KeyType: nftables.MustConcatSetType(
				f.address, f.address, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService)})
			c := r.chain(nftables.ChainTypeFilter, nftables.ChainHookForward, atFilter, accept)
			c.rule(term{ // the kernel has taken one already
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.ttl, Len: 1},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{routers}},
			}, refuse)
			for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				c.rule(l4(proto), term{
					loadNet(0, f.src, f.size), loadNet(words, f.dst, f.size),
					loadProto(2 * words), loadPort(2*words+1, 0), loadPort(2*words+2, 2),
				}, update(flows, 0, 0, &expr.Counter{}))
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Flows returns what the core has carried so far, the most packets first.
func (l *Lab) Flows() []Flow {
	l.t.Helper()
	var flows []Flow
	for family, size := range map[nftables.TableFamily]int{nftables.TableFamilyIPv4: 4, nftables.TableFamilyIPv6: 16} {
		conn, err := nftables.New(nftables.WithNetNSFd(int(l.core.ns)))
		l.must(err, "read the core's counters")
		elems, err := conn.GetSetElements(&nftables.Set{
			Table: &nftables.Table{Family: family, Name: "count"}, Name: "flows"})
		l.must(err, "read the core's counters")
		for _, e := range elems {
			flows = append(flows, flowOf(e, size))
		}
	}
	slices.SortFunc(flows, func(a, b Flow) int { return cmp.Compare(b.Packets, a.Packets) })
	return flows
}

func flowOf(e nftables.SetElement, size int) Flow {
	src, _ := netip.AddrFromSlice(e.Key[:size])
	dst, _ := netip.AddrFromSlice(e.Key[size : 2*size])
	rest := e.Key[2*size:] // protocol, source and destination port, each in the first bytes of a word
	f := Flow{
		Proto: "udp",
		Src:   netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest[4:])),
		Dst:   netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[8:])),
	}
	if rest[0] == unix.IPPROTO_TCP {
		f.Proto = "tcp"
	}
	if e.Counter != nil {
		f.Packets, f.Bytes = e.Counter.Packets, e.Counter.Bytes
	}
	return f
}

// Packets counts what the core has carried from src to dst by proto ("udp" or "tcp"); the zero Addr means any.
func (l *Lab) Packets(proto string, src, dst netip.Addr) (packets, bytes uint64) {
	l.t.Helper()
	for _, f := range l.Flows() {
		if f.Proto == proto && (!src.IsValid() || f.Src.Addr() == src) && (!dst.IsValid() || f.Dst.Addr() == dst) {
			packets += f.Packets
			bytes += f.Bytes
		}
	}
	return packets, bytes
}

// ForgetFlows begins the count anew.
func (l *Lab) ForgetFlows() {
	l.t.Helper()
	l.must(l.core.countFlows(l.routers), "reset the core's counters")
}
