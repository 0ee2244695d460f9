//go:build linux

package lab

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NAT is what a home's router does with the connections of its hosts. Mapping and filtering are named as in
// RFC 4787: EIM one external port for all destinations, EDM another for each; EIF, ADF, APDF: let in anybody,
// who shares the address, or who shares address and port with a destination that the host has sent to.
type NAT int

const (
	Open                      NAT = iota // a routed, public LAN: no NAT, no filter
	FullCone                             // EIM, port kept, EIF
	AddressRestricted                    // EIM, port kept, ADF
	PortRestricted                       // EIM, port kept, APDF; what most homes have
	PortRestrictedInputAccept            // the same, but the router itself answers strangers (conntrack remembers them: a trap)
	PortRange                            // EIM, port not kept (61000–65000, outside Linux's ephemeral ports), APDF
	Symmetric                            // EDM, ports random over 1024–65535, APDF
	SymmetricBlock                       // EDM, ports random within 50000–50511, APDF: a carrier's port block
	Sequential                           // UDP: EDM, each new flow gets the next port, APDF; TCP: port kept
	UDPBlocked                           // PortRestricted for TCP, no UDP leaves

	oneToOne // a cloud's edge: all of one public address to one private host and back
)

var natNames = [...]string{
	"Open", "FullCone", "AddressRestricted", "PortRestricted", "PortRestrictedInputAccept", "PortRange",
	"Symmetric", "SymmetricBlock", "Sequential", "UDPBlocked", "oneToOne",
}

func (k NAT) String() string { return natNames[k] }

// mappingLife is how long a FullCone, AddressRestricted or hairpin mapping without traffic lets strangers in:
// 5 min, the recommendation of RFC 4787 REQ-5.
const mappingLife = 5 * time.Minute

// Names of a router's links: "wan" faces the internet, "lan…" the customers.

// nat installs the router's rules for IPv4: translation and filter.
func (n *node) nat(kind NAT, wan netip.Addr, inside netip.Prefix, o options) error {
	return n.install(nftables.TableFamilyIPv4, "router", func(r *ruleset) {
		filter(r, kind, o.between)
		if kind != Open {
			translate(r, kind, wan, inside, o.hairpin)
		}
	})
}

// filter says what the router forwards, and what it lets come to itself. A router that accepts packets from
// strangers for itself enters them in conntrack, which spoils the port for the host that needs it later.
func filter(r *ruleset, kind NAT, between bool) {
	input := r.chain(nftables.ChainTypeFilter, nftables.ChainHookInput, atFilter, drop)
	input.rule(known, pass)
	input.rule(in("lan"), pass)
	input.rule(in("lo"), pass)
	input.rule(l4(unix.IPPROTO_ICMP), pass)
	if kind == PortRestrictedInputAccept || kind == Open {
		input.rule(pass)
	}

	forward := r.chain(nftables.ChainTypeFilter, nftables.ChainHookForward, atFilter, drop)
	if kind == UDPBlocked {
		forward.rule(in("lan"), l4(unix.IPPROTO_UDP), refuse)
	}
	forward.rule(known, pass)
	forward.rule(in("lan"), out("wan"), pass)
	forward.rule(dnatted, pass)
	if between {
		forward.rule(in("lan"), out("lan"), pass)
	}
	if kind == Open {
		forward.rule(pass)
	}
}

func translate(r *ruleset, kind NAT, wan netip.Addr, inside netip.Prefix, hairpin bool) {
	before := r.chain(nftables.ChainTypeNAT, nftables.ChainHookPrerouting, atDNAT, accept)
	after := r.chain(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, atSNAT, accept)
	toWAN := equal(loadNet(0, 16, 4), wan.AsSlice())

	if kind == oneToOne {
		before.rule(toWAN, term{value(0, inside.Addr().AsSlice()), &expr.NAT{
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0),
		}})
		after.rule(out("lan"), dnatted, equal(loadNet(0, 12, 4), inside.Addr().AsSlice()), source(wan))
		after.rule(out("wan"), source(wan))
		return
	}

	if kind == FullCone || kind == AddressRestricted || hairpin {
		// mapped: (protocol, external port) → inside endpoint, learnt from each packet that has left.
		mapped := r.set(&nftables.Set{
			Name: "mapped", IsMap: true, HasTimeout: true, Timeout: mappingLife, Size: 1 << 16,
			KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
			DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
		})
		// spoken: (protocol, external port, address) that the port has sent to.
		spoken := r.set(&nftables.Set{
			Name: "spoken", HasTimeout: true, Timeout: mappingLife, Size: 1 << 16,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr),
		})
		learn := r.chain(nftables.ChainTypeFilter, nftables.ChainHookPostrouting, atAfterSNAT, accept)
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			learn.rule(out("wan"), l4(proto), term{loadProto(0), loadPort(1, 0), loadNet(2, 16, 4)},
				update(spoken, 0, mappingLife))
			learn.rule(out("wan"), l4(proto), original, term{
				loadProto(0), loadPort(1, 0),
				&expr.Ct{Key: expr.CtKeySRC, Register: reg(2)}, &expr.Ct{Key: expr.CtKeyPROTOSRC, Register: reg(3)},
			}, update(mapped, reg(2), mappingLife))

			inward := func(match ...term) {
				terms := append(match, toWAN, l4(proto), term{
					loadProto(0), loadPort(1, 2),
					&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(4), IsDestRegSet: true, SetID: mapped.ID, SetName: mapped.Name},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(4), RegProtoMin: reg(5)},
				})
				before.rule(terms...)
			}
			switch kind {
			case FullCone:
				inward(in("wan"))
			case AddressRestricted:
				inward(in("wan"), l4(proto), term{
					loadProto(0), loadPort(1, 2), loadNet(2, 12, 4),
					&expr.Lookup{SourceRegister: reg(0), SetID: spoken.ID, SetName: spoken.Name},
				})
			}
			if hairpin {
				inward(in("lan"))
			}
		}
		after.rule(out("lan"), dnatted, sameNet(12, inside), source(wan))
	}

	switch kind {
	case PortRange:
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			after.rule(out("wan"), l4(proto), sourcePorts(wan, 61000, 65000, false))
		}
	case SymmetricBlock:
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			after.rule(out("wan"), l4(proto), sourcePorts(wan, 50000, 50511, true))
		}
	case Sequential:
		after.rule(out("wan"), l4(unix.IPPROTO_UDP), term{
			&expr.Numgen{Register: reg(4), Modulus: 20000, Type: unix.NFT_NG_INCREMENTAL, Offset: 42000},
			// The number is 32 bits of the host's order, a port the first 16 in the network's.
			&expr.Byteorder{SourceRegister: reg(4), DestRegister: reg(4), Op: expr.ByteorderHton, Len: 4, Size: 2},
			value(0, wan.AsSlice()),
			&expr.NAT{
				Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4,
				RegAddrMin: reg(0), RegProtoMin: reg(4), RegProtoMax: reg(4),
			},
		})
	case Symmetric:
		after.rule(out("wan"), term{value(0, wan.AsSlice()), &expr.NAT{
			Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0), FullyRandom: true,
		}})
	}
	after.rule(out("wan"), source(wan))
}

// source gives connections the router's address and leaves the port where it is free.
func source(wan netip.Addr) term {
	return term{value(0, wan.AsSlice()), &expr.NAT{
		Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0),
	}}
}

func sourcePorts(wan netip.Addr, lo, hi uint16, random bool) term {
	return term{
		value(0, wan.AsSlice()),
		value(1, binaryutil.BigEndian.PutUint16(lo)),
		value(2, binaryutil.BigEndian.PutUint16(hi)),
		&expr.NAT{
			Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4,
			RegAddrMin: reg(0), RegProtoMin: reg(1), RegProtoMax: reg(2), FullyRandom: random,
		},
	}
}

// sameNet matches packets whose IPv4 address at offset lies in the prefix.
func sameNet(offset uint32, p netip.Prefix) term {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return term{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// filter6 installs a home router's IPv6 firewall: no translation, inside may call out, answers come back.
func (n *node) filter6(kind NAT) error {
	return n.install(nftables.TableFamilyIPv6, "router", func(r *ruleset) {
		input := r.chain(nftables.ChainTypeFilter, nftables.ChainHookInput, atFilter, drop)
		forward := r.chain(nftables.ChainTypeFilter, nftables.ChainHookForward, atFilter, drop)
		if kind == UDPBlocked {
			forward.rule(in("lan"), l4(unix.IPPROTO_UDP), refuse)
		}
		for _, c := range []*chain{input, forward} {
			c.rule(known, pass)
			c.rule(in("lan"), pass)
			c.rule(l4(unix.IPPROTO_ICMPV6), pass)
			if kind == Open {
				c.rule(pass)
			}
		}
		input.rule(in("lo"), pass)
	})
}

// firewall installs a host's own packet filter: what it calls may answer, else only the open ports.
func (n *node) firewall(open []port) error {
	return n.install(nftables.TableFamilyINet, "firewall", func(r *ruleset) {
		input := r.chain(nftables.ChainTypeFilter, nftables.ChainHookInput, atFilter, drop)
		input.rule(known, pass)
		input.rule(in("lo"), pass)
		input.rule(l4(unix.IPPROTO_ICMP), pass)
		input.rule(l4(unix.IPPROTO_ICMPV6), pass)
		for _, p := range open {
			input.rule(l4(p.proto), dport(p.number), pass)
		}
	})
}
