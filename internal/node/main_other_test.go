//go:build !linux

package node

import (
	"testing"

	"fwd/itest/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }
