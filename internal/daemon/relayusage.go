package daemon

import (
	"context"
	"time"

	"fwd/relaynode"
)

// usageEvery is how often a relay notes how much it has relayed this month: a
// kill -9 may forget that much of the quota.
const usageEvery = 10 * time.Minute

func (d *Daemon) relayUsage() (u relaynode.Usage) {
	d.state.get(func(s stateFile) { u = relaynode.Usage{Month: s.RelayMonth, Bytes: s.RelayBytes} })
	return u
}

// followRelayUsage keeps the month's count on disk until ctx ends.
func (d *Daemon) followRelayUsage(ctx context.Context) error {
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	for {
		var ended error
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = ctx.Err()
		}
		if now := d.relay.Usage(); now != d.relayUsage() {
			if err := d.state.change(func(s *stateFile) { s.RelayMonth, s.RelayBytes = now.Month, now.Bytes }); err != nil {
				d.log.Warn("note the month's use", "err", err)
			}
		}
		if ended != nil {
			return ended
		}
	}
}
