package daemon

import (
	"fmt"
	"slices"
	"time"

	"fwd/identity"
)

// clockOff is by how much a clock may be wrong without a word about it: libp2p's
// certificates begin an hour before they are made, and QUIC checks them.
const clockOff = 30 * time.Minute

// warnings are what a person should know about this machine, each with its code.
func (d *Daemon) warnings(now time.Time) []string {
	list := append([]string{}, slices.Concat(d.twins.warnings(now), d.welcomes.warnings())...) // never null for scripts
	list = append(list, d.clockWarnings(now)...)
	if d.relay != nil && d.relay.Spent() {
		list = append(list, "this relay has carried as much as it may this month, and carries nothing more until the next: raise monthly in fwd.toml (quota-spent)")
	}
	off, _ := d.node.ClockOff()
	if silent := d.ownerSilent() + min(off, 0); silent > identity.StaleWarn {
		then := ""
		if d.strict.Load() {
			then = "; this machine is strict and lets no new connection in after 72 h"
		}
		list = append(list, fmt.Sprintf("the network's owner has not been heard of for %s: a revocation may be withheld%s (owner-silent)", plainSpan(silent), then))
	}
	return list
}

// clockWarnings say by how much the clock is wrong, by the relays' clocks and by what the owner signed.
func (d *Daemon) clockWarnings(now time.Time) []string {
	const then = "until then there is no QUIC, and so hardly a direct path (clock-wrong)"
	off, asked := d.node.ClockOff()
	signed := d.book.Now(now).Sub(now)
	switch {
	case d.currentOwner() != nil && signed > clockOff:
		return []string{fmt.Sprintf("this machine owns the network, and signed %s ahead of what its clock shows now: access ends so much too early; see that the clock is right, then: fwd owner sign (clock-wrong)", plainSpan(signed))}
	case asked && off > clockOff:
		return []string{fmt.Sprintf("this machine's clock is %s slow, by the relays' clocks: set it; %s", plainSpan(off), then)}
	case asked && off < -clockOff:
		return []string{fmt.Sprintf("this machine's clock is %s fast, by the relays' clocks: set it; %s", plainSpan(-off), then)}
	case asked && signed > clockOff:
		return []string{fmt.Sprintf("the network's owner signed %s ahead of this machine's clock, with which the relays' agree: access ends so much too early; on the owner, once its clock is right: fwd owner sign (clock-wrong)", plainSpan(signed))}
	case signed > clockOff:
		return []string{fmt.Sprintf("this machine's clock is at least %s slow, by what the network's owner signed: set it; %s", plainSpan(signed), then)}
	}
	return nil
}

// ownerSilent is for how long nobody here has had a word of the network's owner; 0
// without a network.
func (d *Daemon) ownerSilent() time.Duration {
	at := d.book.Fresh()
	if at.IsZero() {
		return 0
	}
	return max(time.Since(at), 0)
}

// plainSpan is a long time in words: "3 days", "26 h".
func plainSpan(t time.Duration) string {
	switch {
	case t >= 72*time.Hour:
		return fmt.Sprintf("%d days", t/(24*time.Hour))
	case t >= 2*time.Hour:
		return fmt.Sprintf("%d h", t/time.Hour)
	}
	return fmt.Sprintf("%d min", t/time.Minute)
}
