package identity

import (
	"fmt"
	"strconv"
	"strings"
)

// maxName is 63 characters: what DNS allows a label (RFC 1035 §2.3.4), so that
// names can be spoken to resolvers and browsers.
const maxName = 63

// CheckName accepts the names of machines, services, tags and networks:
// 1 to 63 of a–z, 0–9 and the hyphen, not at either end.
func CheckName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("name %.80q: 1 to %d characters are wanted", s, maxName)
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return fmt.Errorf("name %q: only a-z, 0-9 and the hyphen are allowed", s)
		}
	}
	if s[0] == '-' || s[len(s)-1] == '-' {
		return fmt.Errorf("name %q: no hyphen at the ends", s)
	}
	return nil
}

// checkMachine is CheckName less the words that mean something else where a
// machine's name can stand.
func checkMachine(s string) error {
	if s == "members" || s == "fwd" {
		return fmt.Errorf("name %q is taken by fwd itself", s)
	}
	return CheckName(s)
}

// CleanName makes an allowed machine name of any text, such as a host name: "Anna's
// MacBook.local" becomes "anna-s-macbook".
func CleanName(s string) string {
	s, _, _ = strings.Cut(strings.ToLower(s), ".")
	var b strings.Builder
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == maxName {
			break
		}
	}
	name := strings.Trim(b.String(), "-")
	if checkMachine(name) != nil {
		return "machine"
	}
	return name
}

// freeName returns want, or want-2, want-3, … whichever is not taken.
func freeName(want string, taken func(string) bool) string {
	name := want
	for n := 2; taken(name); n++ {
		tail := "-" + strconv.Itoa(n)
		name = strings.TrimRight(want[:min(len(want), maxName-len(tail))], "-") + tail
	}
	return name
}
