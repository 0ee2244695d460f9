//go:build linux

package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The little language of nftables that the lab needs: a ruleset is a table with chains, a rule a list of terms,
// each term what one would write in nft(8).

// term is a piece of a rule: a match or a verdict.
type term []expr.Any

// ruleset is one nftables table on its way into a node. Installing it replaces the table of that name as a whole.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
	node  *node
	err   error
}

// nft serialises the making of rulesets: the library numbers its sets from one unguarded global counter.
var nft sync.Mutex

// install replaces a table of the node by what fill says. Packets see the old table or the new one, never neither.
func (n *node) install(family nftables.TableFamily, name string, fill func(*ruleset)) error {
	nft.Lock()
	defer nft.Unlock()
	conn, err := nftables.New(nftables.WithNetNSFd(int(n.ns)))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: family, Name: name}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	r := &ruleset{conn: conn, table: table, node: n}
	fill(r)
	if r.err == nil {
		r.err = conn.Flush()
	}
	if r.err != nil {
		return fmt.Errorf("nftables table %s on %s: %w", name, n.name, r.err)
	}
	return nil
}

// chain adds a base chain. policy is accept or drop.
func (r *ruleset) chain(kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, policy nftables.ChainPolicy) *chain {
	name := fmt.Sprintf("%s_%d_%d", kind, *hook, priority)
	return &chain{r, r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy,
	})}
}

// set adds a set or, with data, a map that packets fill; its elements go after idle.
func (r *ruleset) set(s *nftables.Set) *nftables.Set {
	s.Table, s.Dynamic = r.table, true
	if err := r.conn.AddSet(s, nil); err != nil && r.err == nil {
		r.err = err
	}
	return s
}

type chain struct {
	*ruleset
	to *nftables.Chain
}

func (c *chain) rule(terms ...term) {
	c.conn.AddRule(&nftables.Rule{Table: c.table, Chain: c.to, Exprs: slices.Concat(terms...)})
}

const (
	accept = nftables.ChainPolicyAccept
	drop   = nftables.ChainPolicyDrop
)

// The hooks' places, numbers as in nft(8): raw -300, dstnat -100, filter 0, srcnat 100.
const (
	atRaw       nftables.ChainPriority = -300
	atDNAT      nftables.ChainPriority = -100
	atFilter    nftables.ChainPriority = 0
	atSNAT      nftables.ChainPriority = 100
	atAfterSNAT nftables.ChainPriority = 150
)

func verdict(kind expr.VerdictKind) term { return term{&expr.Verdict{Kind: kind}} }

var (
	pass   = verdict(expr.VerdictAccept)
	refuse = verdict(expr.VerdictDrop)
)

func equal(what expr.Any, want []byte) term {
	return term{what, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
}

// in and out match interfaces by the beginning of their name.
func in(prefix string) term {
	return equal(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, []byte(prefix))
}

func out(prefix string) term {
	return equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, []byte(prefix))
}

// inOnly and outOnly match one interface.
func inOnly(name string) term {
	return equal(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, ifname(name))
}

func outOnly(name string) term {
	return equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, ifname(name))
}

func ifname(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }

func l4(proto byte) term {
	return equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{proto})
}

func dport(port uint16) term {
	return equal(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		binaryutil.BigEndian.PutUint16(port))
}

// dportRange matches destination ports from lo to hi.
func dportRange(lo, hi uint16) term {
	return term{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(lo), ToData: binaryutil.BigEndian.PutUint16(hi)},
	}
}

// from and to match addresses of either family in an inet table.
func from(a netip.Addr) term { return address46(a, 12, 8) }
func to(a netip.Addr) term   { return address46(a, 16, 24) }

func address46(a netip.Addr, offset4, offset6 uint32) term {
	family, offset, size := byte(unix.NFPROTO_IPV4), offset4, uint32(4)
	if a.Is6() {
		family, offset, size = unix.NFPROTO_IPV6, offset6, 16
	}
	return slices.Concat(
		equal(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{family}),
		equal(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, a.AsSlice()),
	)
}

// bits matches when any of the mask's bits is set.
func bits(what expr.Any, mask uint32) term {
	zero := binaryutil.NativeEndian.PutUint32(0)
	return term{
		what,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
	}
}

var (
	known    = bits(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	dnatted  = bits(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, 1<<5 /* IPS_DST_NAT */)
	original = equal(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, []byte{0})
)

// reg is a register of four bytes; keys of several fields lie in consecutive ones.
func reg(i int) uint32 { return uint32(unix.NFT_REG32_00 + i) }

func loadProto(i int) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(i)}
}

func loadNet(i int, offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(i), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

func loadPort(i int, offset uint32) expr.Any { // 0: source, 2: destination
	return &expr.Payload{DestRegister: reg(i), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

func value(i int, data []byte) expr.Any { return &expr.Immediate{Register: reg(i), Data: data} }

// update puts the key in register 0 (and the data in register data, 0: a plain set) into the set, or makes it young again.
func update(s *nftables.Set, data uint32, timeout time.Duration, each ...expr.Any) term {
	return term{&expr.Dynset{
		SrcRegKey: reg(0), SrcRegData: data, SetID: s.ID, SetName: s.Name,
		Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: timeout, Exprs: each,
	}}
}

// walls are a node's drop rules that come and go while tests run: cut cables, blocked protocols, severed pairs.
type walls struct {
	mu    sync.Mutex
	built map[string][]wall
}

type wall struct {
	hook *nftables.ChainHook
	what term
}

// wall builds (or with no rules takes down) the wall of that name. Existing flows are stopped as well.
func (n *node) wall(name string, rules ...wall) error {
	n.walls.mu.Lock()
	defer n.walls.mu.Unlock()
	if n.walls.built == nil {
		n.walls.built = map[string][]wall{}
	}
	n.walls.built[name] = rules
	return n.install(nftables.TableFamilyINet, "walls", func(r *ruleset) {
		chains := map[nftables.ChainHook]*chain{}
		for _, name := range slices.Sorted(maps.Keys(n.walls.built)) {
			for _, w := range n.walls.built[name] {
				if chains[*w.hook] == nil {
					chains[*w.hook] = r.chain(nftables.ChainTypeFilter, w.hook, atRaw, accept)
				}
				chains[*w.hook].rule(w.what, refuse)
			}
		}
	})
}
