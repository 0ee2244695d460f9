package datagram

import (
	"bytes"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxCarriers is how many a half has at most, 4: an entry has one, and a moment long the one before and the next.
const maxCarriers = 4

const (
	roleEntry = "entry"
	roleExit  = "exit"
)

// A half is what we have with one peer in one direction of use: its flows, what waits to be sent, and the carriers.
type half struct {
	e     *Endpoint
	peer  peer.ID
	role  string
	boot  uint64 // C's
	log   *slog.Logger
	renew chan struct{} // capacity 1, C: there may be a better path

	mu       sync.Mutex
	flows    map[uint64]*Flow
	queue    queue
	parked   int        // E: what flows that are not accepted yet keep
	carriers []*carrier // those that live, the newest last
	via      *carrier   // the one to send by: the newest that is not retired; nil: none
	moved    time.Time  // when a datagram last did
	holds    int        // C: users that want a carrier kept ready; E: streams that are or become carriers
	gone     bool       // E: C has another boot; no flow or carrier may begin, for nothing would find it to end it
	stop     func()     // C: ends keep
	told     time.Time  // E: when a denial was last logged
	crowded  bool       // it was logged that datagrams are dropped
}

func newHalf(e *Endpoint, p peer.ID, role string, boot uint64) *half {
	return &half{
		e: e, peer: p, role: role, boot: boot, log: e.log.With("peer", p.String(), "role", role),
		renew: make(chan struct{}, 1), flows: make(map[uint64]*Flow),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push queues a datagram of a flow that is not over.
func (h *half) push(it item) {
	h.mu.Lock()
	if it.flow.over {
		h.mu.Unlock()
		return
	}
	before := h.queue.shed
	h.queue.push(it)
	h.moved = it.at
	tell := !h.crowded && h.queue.shed > before && h.via != nil
	h.crowded = h.crowded || tell
	if h.via != nil {
		signal(h.via.wake)
	}
	h.mu.Unlock()
	if tell {
		h.log.Info("datagrams are dropped: more is sent than the path takes", "service", it.flow.service)
	}
}

// take gives c the next datagram to send, if c is the one to send by and wants it.
func (h *half) take(c *carrier, now time.Time, wants func(item) bool) (item, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.via != c {
		return item{}, false
	}
	it, ok := h.queue.first(now)
	if !ok || !wants(it) {
		return item{}, false
	}
	h.queue.take()
	return it, true
}

// use makes c the carrier to send by, or ends it if the half is gone.
func (h *half) use(c *carrier) {
	h.mu.Lock()
	if c.over() { // it may have been dropped already, and would stay
		h.mu.Unlock()
		return
	}
	if !slices.Contains(h.carriers, c) {
		h.carriers = append(h.carriers, c)
	}
	var surplus *carrier
	if len(h.carriers) > maxCarriers {
		surplus = h.carriers[0]
	}
	if h.gone {
		surplus = c
	}
	h.chooseLocked()
	h.mu.Unlock()
	if surplus != nil {
		surplus.end()
	}
}

// drop forgets a carrier that has ended.
func (h *half) drop(c *carrier) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.carriers = slices.DeleteFunc(h.carriers, func(k *carrier) bool { return k == c })
	h.chooseLocked()
}

// retire keeps the carriers before c for what is on its way, and no longer.
func (h *half) retire(c *carrier) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, old := range h.carriers {
		if old != c && !old.retired {
			old.retired = true
			time.AfterFunc(retireAfter, old.end)
		}
	}
	h.chooseLocked()
}

func (h *half) chooseLocked() {
	h.via = nil
	for _, c := range h.carriers {
		if !c.retired {
			h.via = c
		}
	}
	if h.via != nil {
		signal(h.via.wake)
	}
}

func (h *half) current() *carrier {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.via
}

// control sends a frame that is no datagram, if there is a carrier.
func (h *half) control(f frame) {
	if c := h.current(); c != nil {
		c.control(f)
	}
}

func (h *half) close(number uint64, code Code) {
	h.control(frame{typ: frameClose, number: number, code: code})
}

func (h *half) flow(number uint64) *Flow {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flows[number]
}

// add takes a flow in, at the cost of the one that has been idle longest where there are too many; false: its number is
// taken, or the half is gone.
func (h *half) add(f *Flow) bool {
	now := time.Now()
	var oldest *Flow
	h.mu.Lock()
	if h.gone || h.flows[f.number] != nil {
		h.mu.Unlock()
		return false
	}
	if len(h.flows) >= maxFlows {
		for _, o := range h.flows {
			if oldest == nil || o.idle(now) > oldest.idle(now) {
				oldest = o
			}
		}
	}
	h.flows[f.number] = f
	f.all.opened.Add(1)
	if h.role == roleExit {
		h.e.exits.Add(1)
	}
	h.mu.Unlock()
	if oldest != nil {
		h.close(oldest.number, Ended)
		oldest.end(errCrowded)
	}
	return true
}

// park keeps a datagram of a flow that is not accepted yet, if it may: all such flows together have what the queue has, and
// the largest alone fits.
func (h *half) park(f *Flow, b []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	cost := len(b) + itemCost
	if f.over || len(f.pending) >= maxPending || h.parked > 0 && h.parked+cost > queueBytes {
		return false
	}
	f.pending = append(f.pending, bytes.Clone(b))
	h.parked += cost
	return true
}

// unpark gives what the flow has parked.
func (h *half) unpark(f *Flow) [][]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unparkLocked(f)
}

func (h *half) unparkLocked(f *Flow) [][]byte {
	list := f.pending
	f.pending = nil
	for _, b := range list {
		h.parked -= len(b) + itemCost
	}
	return list
}

// remove takes a flow off; false: it was already.
func (h *half) remove(f *Flow) bool {
	h.mu.Lock()
	was := !f.over
	f.over = true
	h.unparkLocked(f)
	if h.flows[f.number] == f {
		delete(h.flows, f.number)
	}
	h.mu.Unlock()
	if was {
		if h.role == roleExit {
			h.e.exits.Add(-1)
		}
		h.e.tidy(h)
	}
	return was
}

// all are the flows now.
func (h *half) all() []*Flow {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Flow, 0, len(h.flows))
	for _, f := range h.flows {
		list = append(list, f)
	}
	return list
}

// endAll ends every flow and carrier.
func (h *half) endAll(err error) {
	for _, f := range h.all() {
		f.end(err)
	}
	h.mu.Lock()
	carriers := slices.Clone(h.carriers)
	h.mu.Unlock()
	for _, c := range carriers {
		c.end()
	}
}

// replaced ends all that is here for good: C has another boot.
func (h *half) replaced() {
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
	h.endAll(errEnded)
}

// sweep closes the flows that have been idle for too long.
func (h *half) sweep(now time.Time) {
	for _, f := range h.all() {
		if f.expired(now) {
			h.close(f.number, Ended)
			f.end(errIdle)
		}
	}
}

// received finds the flow that a datagram is for and hands it on. One that is not known is closed at the other side.
func (h *half) received(c *carrier, number uint64, data []byte) {
	h.mu.Lock()
	f := h.flows[number]
	h.moved = time.Now()
	h.mu.Unlock()
	if f == nil {
		c.control(frame{typ: frameClose, number: number, code: Unknown})
		return
	}
	f.deliver(data)
}

// offered takes an OPEN: a datagram of a flow that E may know.
func (h *half) offered(c *carrier, fr frame) {
	if h.known(c, fr) {
		return
	}
	refuse := func(code Code) { c.control(frame{typ: frameClose, number: fr.number, code: code}) }
	if err := h.e.cfg.Authorize(h.peer, fr.service); err != nil {
		refuse(Denied)
		h.logDenial(fr.service, err)
		return
	}
	if h.e.exits.Load() >= maxExits {
		refuse(Overload)
		return
	}
	f := newFlow(h, fr.number, fr.service, nil)
	if !h.add(f) {
		h.known(c, fr) // another carrier, with a reader of its own, has brought an OPEN of the flow meanwhile
		return
	}
	f.deliver(fr.data)
	select {
	case h.e.offers <- &Incoming{f}:
	default:
		f.Close(Overload)
	}
}

// known takes an OPEN of a flow that E has; false: it has none.
func (h *half) known(c *carrier, fr frame) bool {
	f := h.flow(fr.number)
	if f == nil {
		return false
	}
	h.received(c, fr.number, fr.data)
	if f.accepted() {
		c.control(frame{typ: frameOpened, number: fr.number})
	}
	return true
}

// logDenial logs one a second: the peer can ask as often as it likes.
func (h *half) logDenial(service string, err error) {
	now := time.Now()
	h.mu.Lock()
	tell := now.Sub(h.told) >= time.Second
	if tell {
		h.told = now
	}
	h.mu.Unlock()
	if tell {
		h.log.Warn("denied", "service", service, "reason", err)
	}
}

// closed takes the other side's CLOSE.
func (h *half) closed(number uint64, code Code) {
	f := h.flow(number)
	if f == nil {
		return
	}
	switch code {
	case Ended, Unknown:
		f.end(errEnded)
	default:
		f.end(&RefusedError{Service: f.service, Code: code})
	}
}
