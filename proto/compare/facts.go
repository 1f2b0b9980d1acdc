package main

import (
	"fmt"
	"sort"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// facts is an interface definition laid flat: "field csi.v1.Volume.volume_id" => everything that is true of it.
type facts map[string]string

func factsOf(file protoreflect.FileDescriptor) facts {
	all := facts{}
	all.add("file", file, fmt.Sprintf("syntax=%v", file.Syntax()))
	for _, extension := range items(file.Extensions()) {
		of := extension.ContainingMessage().FullName()
		all.add("extension", extension, fmt.Sprintf("extends=%s %s", of, fieldFacts(extension)))
	}
	for _, enum := range items(file.Enums()) {
		all.addEnum(enum)
	}
	for _, message := range items(file.Messages()) {
		all.addMessage(message)
	}
	for _, service := range items(file.Services()) {
		all.add("service", service, options(service))
		for _, method := range items(service.Methods()) {
			all.add("method", method, fmt.Sprintf("takes=%s stream=%t returns=%s stream=%t %s",
				method.Input().FullName(), method.IsStreamingClient(),
				method.Output().FullName(), method.IsStreamingServer(), options(method)))
		}
	}
	return all
}

func (all facts) addMessage(message protoreflect.MessageDescriptor) {
	all.add("message", message, fmt.Sprintf("map_entry=%t reserved=%v%v extensible=%v %s", message.IsMapEntry(),
		message.ReservedNames(), message.ReservedRanges(), message.ExtensionRanges(), options(message)))
	for _, field := range items(message.Fields()) {
		all.add("field", field, fieldFacts(field))
	}
	for _, oneof := range items(message.Oneofs()) {
		var members []string
		for _, field := range items(oneof.Fields()) {
			members = append(members, string(field.Name()))
		}
		sort.Strings(members)
		all.add("oneof", oneof, fmt.Sprintf("members=%v synthetic=%t %s", members, oneof.IsSynthetic(), options(oneof)))
	}
	for _, enum := range items(message.Enums()) {
		all.addEnum(enum)
	}
	for _, nested := range items(message.Messages()) {
		all.addMessage(nested)
	}
	for _, extension := range items(message.Extensions()) {
		all.add("extension", extension, fieldFacts(extension))
	}
}

func (all facts) addEnum(enum protoreflect.EnumDescriptor) {
	all.add("enum", enum, fmt.Sprintf("reserved=%v%v %s", enum.ReservedNames(), enum.ReservedRanges(), options(enum)))
	for _, value := range items(enum.Values()) {
		// A value's full name leaves the enum out, and two enums of one message may not share it anyway.
		key := fmt.Sprintf("value %s/%s", enum.FullName(), value.Name())
		all[key] = fmt.Sprintf("number=%d %s", value.Number(), options(value))
	}
}

func (all facts) add(kind string, of protoreflect.Descriptor, what string) {
	all[fmt.Sprintf("%s %s", kind, of.FullName())] = what
}

func fieldFacts(field protoreflect.FieldDescriptor) string {
	kind := field.Kind().String()
	if field.Message() != nil {
		kind = string(field.Message().FullName())
	}
	if field.Enum() != nil {
		kind = string(field.Enum().FullName())
	}
	oneof := "none"
	if field.ContainingOneof() != nil {
		oneof = string(field.ContainingOneof().Name())
	}
	return fmt.Sprintf("number=%d type=%s label=%v oneof=%s json=%s presence=%t packed=%t map=%t %s", field.Number(),
		kind, field.Cardinality(), oneof, field.JSONName(), field.HasPresence(), field.IsPacked(), field.IsMap(),
		options(field))
}

// options renders the options of anything, extensions such as csi_secret included, in one order.
func options(of protoreflect.Descriptor) string {
	message := of.Options().ProtoReflect()
	var set []string
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		rendered := value.String()
		if field.Message() != nil && !field.IsList() && !field.IsMap() {
			rendered = prototext.MarshalOptions{}.Format(value.Message().Interface())
		}
		set = append(set, fmt.Sprintf("%s=%s", field.FullName(), rendered))
		return true
	})
	if unknown := message.GetUnknown(); len(unknown) > 0 {
		set = append(set, fmt.Sprintf("unknown=%x", []byte(unknown)))
	}
	sort.Strings(set)
	return "options=[" + strings.Join(set, " ") + "]"
}

// diff lists what one side has and the other has not, and what both have in different shapes.
func diff(ours, theirs facts) []string {
	var lines []string
	for key, what := range theirs {
		if mine, ok := ours[key]; !ok {
			lines = append(lines, fmt.Sprintf("%s: missing from ours", key))
		} else if mine != what {
			lines = append(lines, fmt.Sprintf("%s:\n  ours     %s\n  upstream %s", key, mine, what))
		}
	}
	for key := range ours {
		if _, ok := theirs[key]; !ok {
			lines = append(lines, fmt.Sprintf("%s: not in the specification", key))
		}
	}
	sort.Strings(lines)
	return lines
}

func (all facts) summary() string {
	counts := map[string]int{}
	marks := map[string]int{}
	for key, what := range all {
		counts[strings.Fields(key)[0]]++
		for _, mark := range []string{"csi_secret", "alpha_"} {
			if _, set, _ := strings.Cut(what, "options=["); strings.Contains(set, "csi.v1."+mark) {
				marks[mark]++
			}
		}
	}
	return fmt.Sprintf("%d services, %d methods, %d messages, %d fields, %d oneofs, %d enums, %d enum values, "+
		"%d extensions; %d secret marks, %d alpha marks", counts["service"], counts["method"], counts["message"],
		counts["field"], counts["oneof"], counts["enum"], counts["value"], counts["extension"],
		marks["csi_secret"], marks["alpha_"])
}

// list is what every descriptor list of protoreflect looks like.
type list[T any] interface {
	Len() int
	Get(int) T
}

func items[T any](of list[T]) []T {
	all := make([]T, of.Len())
	for i := range all {
		all[i] = of.Get(i)
	}
	return all
}
