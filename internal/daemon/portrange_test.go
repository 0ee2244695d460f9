package daemon

import (
	"testing"

	"fwd/forward"
)

// Traffic is counted by the word: a peer that had many for one port could fill the memory.
func TestEachPortOfARangeHasOneWord(t *testing.T) {
	ports := forward.Target{Network: "tcp", Address: "127.0.0.1:8000", More: 1}
	for word, place := range map[string]int{"web": 0, "web+1": 1} {
		if service, i := splitPort(word); service != "web" || i != place || portWord(service, i) != word {
			t.Errorf("%s is %s at %d", word, service, i)
		}
	}
	for _, word := range []string{"web+0", "web+01", "web+0000000001", "web++1", "web+-1", "web+", "web+1+0", "web+65536"} {
		service, i := splitPort(word)
		if _, ok := ports.At(i); ok || service != "web" {
			t.Errorf("%s is %s at %d", word, service, i)
		}
	}
}
