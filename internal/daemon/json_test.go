package daemon

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// Scripts read what docs/json.md says: every field that there is.
func TestEveryJSONFieldIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(in reflect.Type) {
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if in.Kind() != reflect.Struct || seen[in] || !strings.HasPrefix(in.PkgPath(), "fwd/") {
			return
		}
		seen[in] = true
		for i := range in.NumField() {
			f := in.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), `"`+name+`"`) {
				t.Errorf("%s.%s is not in docs/json.md: %s", in.Name(), f.Name, name)
			}
			walk(f.Type)
		}
	}
	for _, v := range []any{Event{}, Status{}, LsEntry{}, PeerEntry{}, NetworkEntry{}, Joined{}} {
		walk(reflect.TypeOf(v))
	}
}
