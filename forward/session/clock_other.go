//go:build !linux

package session

import "time"

// bootClock: no better clock is known here; a sleeping machine's outages are counted short.
func bootClock() time.Time { return time.Now() }
