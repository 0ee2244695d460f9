//go:build linux && !long

package itest

import "time"

// What a fault moves in the usual run: little, at a pace that lasts as long as the fault does.
const (
	faultSize = 0       // not used with a rate
	faultRate = 1 << 20 // bytes a second

	cableOut   = 3 * time.Second
	relaysDown = 3 * time.Second
	sleepLasts = 7 * time.Second // less would not be noticed as sleep
	lossLasts  = 3 * time.Second
	resetsFor  = 4 * time.Second
)
