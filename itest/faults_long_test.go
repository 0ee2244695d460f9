//go:build linux && long

package itest

import "time"

// The long variant: 256 MiB each way as fast as it goes, and outages as people have them.
const (
	faultSize = 256 << 20
	faultRate = 0

	cableOut   = 20 * time.Second
	relaysDown = time.Minute
	sleepLasts = 20 * time.Second
	lossLasts  = 10 * time.Second
	resetsFor  = time.Minute
)
